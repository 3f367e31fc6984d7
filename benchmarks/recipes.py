"""What each recipe costs and keeps: the figures that `flatlm recipes` and the README show.

    python -m benchmarks.recipes --quality benchmarks/quantization.json [--large DIR] [--only PATTERN] [--again]

Sizes and speeds are measured here: the demo model and, with --large, a checkpoint of about a billion parameters (random weights serve:
speed does not depend on them). KL and perplexity on the demo model's held-out text come from benchmarks/quantization.py. Recipes that put
the same operators and widths into the file share their speeds. Resumable: what is in the figures is not measured again without --again.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flatlm.convert.atomic_file import atomic_output
from flatlm.generative.benchmarking.record import BenchmarkRequest, Measure
from flatlm.generative.targets.local import LocalTarget
from flatlm.quantize.method import PLAIN
from flatlm.quantize.recipe_figures import FIGURES, MODELS
from flatlm.quantize.recipes import RECIPES, Recipe
from flatlm.utilities.calibration.calibrate import with_assumed_ranges
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.exporter import ExportRequest, export, plan_export

DEMO = Path(__file__).resolve().parent.parent / "flatlm" / "assets" / "demo_model"
PREFILL = {"demo": 128, "large": 256}
CONTEXT = {"demo": 512, "large": 1024}
RUNS = 5


def plain(recipe: Recipe, checkpoint: Path) -> Recipe:
    """A recipe without a method and with made-up ranges: the same operators, widths and sizes, without the time to calibrate."""
    with open_checkpoint(checkpoint) as store:
        names = list(plan_export(store, ExportRequest(checkpoint, Path("x.tflite"), RECIPES["none"])).weights.weights)
    return with_assumed_ranges(replace(recipe, method=PLAIN), names)


def measure(model: str, checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """Export and run a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        export(ExportRequest(checkpoint, file, plain(recipe, checkpoint), (PREFILL[model],), CONTEXT[model]))
        size = file.stat().st_size
        request = BenchmarkRequest(file, PREFILL[model], decode=32 if model == "large" else 64, runs=RUNS)
        record = LocalTarget().benchmark(request)
    speeds: list[Measure | None] = [record.prefill_tokens_per_second, record.decode_tokens_per_second]
    prefill, decode = (measure.median for measure in speeds if measure)
    return {
        "bytes": size,
        "prefill_tokens_per_second": round(prefill, 1),
        "decode_tokens_per_second": round(decode, 2),
    }


def quality(path: Path, recipe: str) -> Mapping[str, Any]:
    """KL and perplexity on the demo model's held-out text, or nothing."""
    lines = json.loads(path.read_text())["models"]["demo"]["entries"] if path.exists() else {}
    found = lines.get(f"flatlm {recipe}", {})
    return {name: found[name] for name in ("mean_kl", "perplexity", "top1_agreement") if name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", type=Path, default=Path(__file__).with_name("quantization.json"))
    parser.add_argument("--large", type=Path, metavar="DIR")
    parser.add_argument("--only", default="*")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    figures: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known = figures.setdefault("recipes", {})
    figures["machine"] = f"{platform.machine()}, 2 cores"
    checkpoints = {"demo": DEMO, **({"large": arguments.large} if arguments.large else {})}
    for model in MODELS:
        speeds: dict[object, dict[str, Any]] = {}
        for name, recipe in RECIPES.items():
            own = known.setdefault(name, {})
            if model in checkpoints and fnmatchcase(name, arguments.only) and (arguments.again or model not in own):
                if recipe.rules not in speeds:
                    speeds[recipe.rules] = measure(model, checkpoints[model], recipe)
                own[model] = dict(speeds[recipe.rules])
                print(model, name, own[model], flush=True)
            if model in own:
                speeds.setdefault(recipe.rules, {key: value for key, value in own[model].items() if key not in ("mean_kl", "perplexity")})
            if model == "demo" and model in own:
                own[model] |= quality(arguments.quality, name)
        with atomic_output(FIGURES) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
