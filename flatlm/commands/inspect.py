"""flatlm inspect FILE"""

import argparse
import json
from pathlib import Path

from flatlm.commands import base
from flatlm.generative.inspect import inspect_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    parser.add_argument("--graph", type=Path, metavar="OUT.svg", help="draw the file's blocks, with their schemes and sizes")
    parser.add_argument("--explorer", action="store_true", help="open Google's Model Explorer on it (until interrupted)")
    parser.add_argument("--port", type=int, default=8080, help="for --explorer: on this machine only; 8080: or the next that is free")
    parser.add_argument("--no-browser", action="store_true", help="for --explorer: serve, and open no browser")


def run(args: argparse.Namespace) -> int:
    found = inspect_file(args.file)
    if args.graph is not None:
        from flatlm.generative.reporting.block_graph import read_block_graph
        from flatlm.generative.reporting.block_svg import draw

        draw(read_block_graph(args.file), args.graph)
    if args.explorer:
        from flatlm.generative.reporting.explorer import explore

        explore(args.file, port=args.port, open_browser=not args.no_browser)
        return 0
    if args.json:
        base.print_json(found.to_dict() | ({} if args.graph is None else {"graph": args.graph}))
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
    if args.graph is not None:
        print(f"\nblock graph: {args.graph}")
    return 0


def _tensors(tensors: dict[str, str]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in tensors.items())
