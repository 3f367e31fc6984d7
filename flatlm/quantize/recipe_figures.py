"""What was measured of each built-in recipe: the figures that ship with the package, made by benchmarks/recipes.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parent.parent / "assets" / "recipe_figures.json"
MODELS: Mapping[str, str] = {"demo": "the demo model (1.3 M parameters)", "large": "a Llama of 1.1 G parameters"}


def recipe_figures() -> dict[str, dict[str, dict[str, Any]]]:
    """By recipe and model: bytes, prefill_tokens_per_second, decode_tokens_per_second; of the demo model mean_kl and perplexity too."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(FIGURES.read_text("utf-8"))["recipes"]
    return found


HEADERS = (
    "recipe",
    "demo: MB",
    "KL",
    "perplexity",
    "prefill/s",
    "decode/s",
    "1.1 G: MB",
    "prefill/s",
    "decode/s",
)


def figure_rows(names: list[str]) -> list[list[str]]:
    """A row of HEADERS for each recipe; what was not measured is a dash."""
    figures = recipe_figures()
    rows = []
    for name in names:
        demo, large = (figures.get(name, {}).get(model, {}) for model in MODELS)
        kl = demo.get("mean_kl")
        rows.append(
            [
                name,
                _megabytes(demo.get("bytes"), 2),
                "-" if kl is None else "0" if kl < 1e-6 else f"{kl:.2g}" if kl >= 1e-4 else f"{kl:.1e}",
                _number(demo.get("perplexity"), ".4g"),
                _number(demo.get("prefill_tokens_per_second"), ",.0f"),
                _number(demo.get("decode_tokens_per_second"), ",.0f"),
                _megabytes(large.get("bytes"), 0),
                _number(large.get("prefill_tokens_per_second"), ",.0f"),
                _number(large.get("decode_tokens_per_second"), ".1f"),
            ]
        )
    return rows


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _megabytes(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value / 1e6:,.{digits}f}"
