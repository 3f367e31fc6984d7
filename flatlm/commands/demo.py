"""flatlm demo"""

import argparse
import dataclasses
from pathlib import Path

from flatlm.commands import base
from flatlm.commands.benchmark import describe as describe_benchmark
from flatlm.commands.export import describe, export_and_verify
from flatlm.generative.benchmarking.record import BenchmarkRequest
from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.targets.local import LocalTarget
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.bundling import bundled_tokenizer
from flatlm.utilities.exporter import ExportRequest

DEMO_MODEL = Path(__file__).parents[1] / "assets" / "demo_model"
PROMPT = "Once upon a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, default=Path("demo_out"), metavar="DIR", help="where the exported files go")
    parser.add_argument("--recipe", default="dynamic_int8", metavar="NAME", help="quantization recipe")


def run(args: argparse.Namespace) -> int:
    recipe = get_recipe(args.recipe)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    output = args.output_dir / f"demo_{recipe.suffix}.litertlm"
    say = (lambda text: None) if args.json else print
    say(f"exporting {DEMO_MODEL} ...")
    report = export_and_verify(ExportRequest(DEMO_MODEL, output, recipe))
    say(describe(report))
    tokenizer = bundled_tokenizer(output)
    with Runner.open(output) as runner:
        story = generate(runner, tokenizer, tokenizer.encode(PROMPT), GenerationConfig(max_new_tokens=200))
    say(f"\n{PROMPT}{story.text}\n")
    speed = LocalTarget().benchmark(BenchmarkRequest(output))
    say(describe_benchmark(speed))
    say(f"\nThe file is {output}. Your own checkpoint: flatlm export DIR -o model.litertlm")
    if args.json:
        base.print_json({"export": dataclasses.asdict(report), "story": dataclasses.asdict(story), "benchmark": speed.to_dict()})
    return 0
