"""flatlm check CHECKPOINT"""

import argparse
from typing import Any

from flatlm.commands import base
from flatlm.commands.export import add_model_arguments, add_recipe_argument, context_of, request_of
from flatlm.convert.weights import WeightLayout
from flatlm.errors import RecipeError
from flatlm.quantize.recipes import RECIPES
from flatlm.utilities.calibration.calibrate import require_possible, with_assumed_ranges
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.exporter import ExportPlan, plan_export
from flatlm.utilities.recipe_file import find_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    base.add_checkpoint_argument(parser, "directory with config.json, weights and tokenizer, or a .gguf file")
    add_recipe_argument(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    with open_checkpoint(args.checkpoint, lora=args.lora) as checkpoint:
        request = request_of(args, args.checkpoint / "model.tflite", find_recipe(args.recipe))
        plan = plan_export(checkpoint, request)
        layouts = {name: _layout(plan, name) for name in RECIPES}
    sizes = {name: layout.size if isinstance(layout, WeightLayout) else layout for name, layout in layouts.items()}
    carries = {name: layout.carry for name, layout in layouts.items() if isinstance(layout, WeightLayout) and layout.carry}
    most = max((carry.carried for carry in carries.values()), default=0)
    config, shape = plan.config, plan.shape
    facts: dict[str, Any] = {
        "checkpoint": args.checkpoint,
        "family": plan.family,
        "parameters": plan.weights.parameters(),
        "layers": len(config.blocks),
        "block_kinds": len(config.block_kinds),
        "vocab_size": config.vocab_size,
        "embedding_dim": config.embedding_dim,
        "max_positions": config.max_positions,
        "tied_head": config.tied_head,
        "tensors": len({part.tensor for weight in plan.weights.weights.values() for part in weight.slot.parts}),
        "ignored_tensors": list(plan.weights.ignored),
        "kv_cache_len": shape.context,
        "kv_cache_dtype": str(shape.cache_dtype),
        "prefill": list(shape.lengths),
        "cache_bytes": shape.cache_bytes,
        **shape.facts,
        "file_bytes": sizes,
        **({"integers": {name: carry.to_dict() for name, carry in carries.items()}} if carries else {}),
        "run_bytes_at_least": {name: size + shape.cache_bytes for name, size in sizes.items() if isinstance(size, int)},
    }
    if args.json:
        base.print_json(facts)
        return 0
    print(f"{args.checkpoint} can be exported: {plan.family}, {facts['parameters'] / 1e6:.1f} M parameters, {facts['layers']} layers")
    print(
        f"{facts['tensors']} tensors used, {len(plan.weights.ignored)} ignored"
        + "".join(f"\n  ignored: {name}" for name in plan.weights.ignored)
    )
    context = context_of(shape.context, shape.cache_dtype, shape.cache_bytes > 0)
    print(f"{context}: {base.megabytes(shape.cache_bytes)}\n" if shape.cache_bytes else f"{context}\n")
    rows = [
        [name, base.megabytes(size), base.megabytes(size + shape.cache_bytes)] if isinstance(size, int) else [name, size, ""]
        for name, size in sizes.items()
    ]
    print(base.table(["recipe", "weights in the file", "memory to run, at least"], rows))
    if carries:
        print()
        print(base.table(["recipe", "of the checkpoint's integers"], [[name, str(carry)] for name, carry in carries.items()]))
    if most:
        keeping = [name for name, carry in carries.items() if carry.carried == most]
        smallest = min(keeping, key=lambda name: int(sizes[name]))
        print(f"\n--recipe {smallest} is the smallest that carries the most of them over")
    return 0


def _layout(plan: ExportPlan, recipe: str) -> WeightLayout | str:
    """The weights by a recipe, or why it does not apply."""
    try:
        weights = plan.weights.weights
        require_possible(plan.config, weights, RECIPES[recipe], text=True)
        return WeightLayout(weights, with_assumed_ranges(RECIPES[recipe], list(weights)))
    except RecipeError as error:
        return f"does not apply: {error}"
