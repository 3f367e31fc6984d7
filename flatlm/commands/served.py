"""What the verbs that talk to models share: the arguments that say which, and what opens them."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatlm.commands import base
from flatlm.commands.export import one_or_more
from flatlm.errors import ExportError, RuntimeFileError
from flatlm.generative.engine_config import EngineConfig
from flatlm.generative.source import is_exported, open_source
from flatlm.generative.speculation import VERIFY_LENGTH
from flatlm.utilities.tokenizing.named_templates import PLAIN, find_template
from flatlm.utilities.tokenizing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Served:
    """A model that is ready to be opened.

    `name`: what the user gave, in short. `tokenizer_source`: for `file_tokenizer` in another process; None: the bundle's own. `template`:
    Jinja text in the place of the tokenizer's own template; None: its own, where it has one. `draft`: a smaller model of the same
    vocabulary, whose guesses it checks. `threads`: None: one for each core.
    """

    name: str
    file: Path
    tokenizer: Tokenizer
    tokenizer_source: Path | None
    template: str | None
    draft: Path | None
    threads: int | None

    @property
    def has_template(self) -> bool:
        """Whether it takes conversations."""
        return (self.template or self.tokenizer.chat_template) is not None


BUNDLE = ".litertlm"
_OF_EXPORTS = {
    "recipe": "--recipe",
    "kv_cache_len": "--kv-cache-len",
    "prefill": "--prefill",
    "model": "--model",
    "ignore_config_key": "--ignore-config-key",
    "custom": "--custom",
    "module_map": "--module-map",
}
"""Arguments that say nothing of a file that is exported already."""


def add_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """`several`: of models, where one is the least; else there is one."""
    what = "an exported .tflite or .litertlm, or a checkpoint, which is exported once and kept"
    parser.add_argument("sources", type=Path, nargs="*", metavar="FILE" if several else "FILE|CHECKPOINT", help=what)
    parser.add_argument("-p", type=Path, dest="checkpoints", action="append", metavar="DIR", help="another way to give a checkpoint")
    parser.set_defaults(several=several)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with the tokenizer (a .litertlm has its own)")
    parser.add_argument("--chat-template", metavar="NAME|FILE", help="plain, chatml, or a file of Jinja text (default: the model's own)")
    parser.add_argument("--threads", type=int, help="threads to run with (all cores)")
    parser.add_argument(
        "--draft",
        type=Path,
        metavar="FILE",
        help="an exported smaller model of the same tokens, which guesses ahead (for each of several models)",
    )
    export = parser.add_argument_group("of a checkpoint's export")
    export.add_argument("--recipe", metavar="NAME", help="how weights are stored (dynamic_int8)")
    lengths = base.comma_separated_lengths
    export.add_argument("--kv-cache-len", type=lengths, metavar="S,...", help="the most tokens of a prompt and its answer together")
    export.add_argument("--prefill", type=lengths, metavar="T,...", help="lengths of the prefill signatures")
    base.add_reading_arguments(export, task=False)


def open_served(args: argparse.Namespace, *, plain: bool = False) -> list[Served]:
    """What the arguments name, in their order; a checkpoint is exported now if it was not before. Nothing is loaded yet.

    `plain`: what has no chat template gets the one named so, and stderr says it. Raises a FlatlmError.
    """
    sources = [*args.sources, *(args.checkpoints or [])]
    if not sources or (len(sources) > 1 and not args.several):
        count = "at least one model" if args.several else "one model"
        raise RuntimeFileError(f"give {count}: an exported file, or a checkpoint's directory (also as -p DIR)")
    _require_exports(sources, args)
    template = None if args.chat_template is None else find_template(args.chat_template)
    return [_open(source, args, template, plain=plain, several=len(sources) > 1) for source in sources]


def _open(source: Path, args: argparse.Namespace, template: str | None, *, plain: bool, several: bool) -> Served:
    # Beside other models, a bundle is not the one that a tokenizer is given for: it has its own.
    own = several and source.suffix == BUNDLE
    with base.progress_bar() as progress:
        tokenizer = None if own else args.tokenizer
        found = open_source(source, _engine_config(args, source), tokenizer=tokenizer, progress=progress, apart=True)
    if plain and template is None and found.tokenizer.chat_template is None:
        print(f"{source} has no chat template: it goes on from what is written, as --chat-template plain says", file=sys.stderr)
        template = PLAIN
    return Served(source.resolve().name, found.file, found.tokenizer, found.tokenizer_source, template, args.draft, args.threads)


def _require_exports(sources: Sequence[Path], args: argparse.Namespace) -> None:
    """That nothing is asked for which only an export could give, where all are exported already."""
    given = [option for name, option in _OF_EXPORTS.items() if getattr(args, name)]
    if given and all(map(is_exported, sources)):
        raise ExportError(f"{sources[0]} is exported already, and {', '.join(given)} would be for exporting it: give its checkpoint")


def _engine_config(args: argparse.Namespace, source: Path) -> EngineConfig:
    if is_exported(source):
        return EngineConfig(threads=args.threads)
    return EngineConfig(
        recipe=args.recipe or "dynamic_int8",
        kv_cache_len=one_or_more(args.kv_cache_len),
        prefill_lengths=args.prefill,
        custom_module_map=args.module_map,
        custom=args.custom,
        family=args.model,
        ignored_config_keys=tuple(args.ignore_config_key),
        verify_length=None if args.draft is None else VERIFY_LENGTH,
        threads=args.threads,
    )
