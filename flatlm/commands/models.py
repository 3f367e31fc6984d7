"""flatlm models"""

import argparse
import dataclasses

from flatlm.commands import base
from flatlm.utilities.configs.families import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> int:
    if args.json:
        base.print_json({"families": [dataclasses.asdict(record) for record in FAMILIES]})
    else:
        print(base.table(["family", "architectures", "models"], [[r.name, ", ".join(r.architectures), r.models] for r in FAMILIES]))
    return 0
