"""Regenerate the tables in README.md from the code's own records: `python tools/update_docs.py`. A test checks that they are up to date."""

import re
from pathlib import Path

from flatlm.quantize.recipe_figures import HEADERS, figure_rows
from flatlm.quantize.recipes import RECIPES
from flatlm.utilities.configs.families import FAMILIES

README = Path(__file__).resolve().parent.parent / "README.md"


def tables() -> dict[str, str]:
    """Each generated section's Markdown, by its name."""
    models = ["| family | `architectures` in config.json | models | reference |", "| --- | --- | --- | --- |"]
    models += [f"| {r.name} | {', '.join(f'`{a}`' for a in r.architectures)} | {r.models} | {r.reference} |" for r in FAMILIES]
    recipes = ["| recipe | file suffix | what it does | a healthy file keeps |", "| --- | --- | --- | --- |"]
    for recipe in RECIPES.values():
        bound = recipe.bound
        kept = [
            f"max abs error ≤ {bound.max_abs_error:g}" if bound.max_abs_error is not None else "",
            f"mean KL ≤ {bound.mean_kl:g}" if bound.mean_kl is not None else "",
            f"top-1 ≥ {bound.top1_agreement:g}" if bound.top1_agreement is not None else "",
        ]
        promise = ", ".join(part for part in kept if part) or "nothing promised: " + (recipe.warning or "")
        recipes.append(f"| `{recipe.name}` | {recipe.suffix} | {recipe.summary} | {promise} |")
    figures = ["| " + " | ".join(HEADERS) + " |", "| --- |" + " ---: |" * (len(HEADERS) - 1)]
    figures += [f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in figure_rows(list(RECIPES))]
    return {"models": "\n".join(models), "recipes": "\n".join(recipes), "figures": "\n".join(figures)}


def updated(text: str) -> str:
    """The document with every `<!-- name -->...<!-- /name -->` section made anew."""
    for name, table in tables().items():
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        text, count = re.subn(pattern, lambda _, n=name, t=table: f"<!-- {n} -->\n{t}\n<!-- /{n} -->", text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md has {count} sections named {name}")
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8")), "utf-8")
