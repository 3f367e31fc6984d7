"""flatlm inspect FILE"""

import argparse
import json
from pathlib import Path

from flatlm.commands import base
from flatlm.generative.inspect import inspect_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")


def run(args: argparse.Namespace) -> int:
    found = inspect_file(args.file)
    if args.json:
        base.print_json(found.to_dict())
        return 0
    print(f"{found.file}: {base.megabytes(found.bytes)}")
    for signature in found.signatures:
        caches = [name for name in signature.inputs if name.startswith("kv_cache_")]
        shown = {name: spec for name, spec in signature.inputs.items() if name not in caches}
        outputs = {name: spec for name, spec in signature.outputs.items() if name not in caches}
        print(f"\n{signature.name}")
        print(
            f"  inputs   {_tensors(shown)}"
            + (f", {len(caches)} caches such as {caches[0]} {signature.inputs[caches[0]]}" if caches else "")
        )
        print(f"  outputs  {_tensors(outputs)}{', the same caches' if caches and outputs else 'the same caches' if caches else ''}")
        print("  operators " + ", ".join(f"{name} {count}" for name, count in signature.operators.items()))
    print("\nweights")
    print(
        base.table(["  stored as", "tensors", "size"], [[f"  {k}", str(n), base.megabytes(size)] for k, (n, size) in found.weights.items()])
    )
    print("\nmanifest " + (json.dumps(found.manifest, indent=2) if found.manifest else "none: written by another tool"))
    return 0


def _tensors(tensors: dict[str, str]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in tensors.items())
