"""flatlm serve FILE [FILE...]"""

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatlm.commands import base, served
from flatlm.errors import RuntimeFileError
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.settings import ServerSettings

if TYPE_CHECKING:
    from flatlm.serving.running import Served

KEYS_VARIABLE = "FLATLM_API_KEYS"
_PLAIN = ServerSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    served.add_arguments(parser, several=True)
    add_server_arguments(parser)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it listens, and its bounds."""
    group = parser.add_argument_group("of the server")
    group.add_argument("--host", default=_PLAIN.host, help="where to listen; 0.0.0.0: for all who reach this machine")
    group.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name to be called by, as behind a proxy")
    group.add_argument("--port", type=int, default=_PLAIN.port, help="0: a free one, which is printed")
    group.add_argument(
        "--model-name", "--model_name", action="append", default=[], metavar="NAME", help="what requests call a model; once for each"
    )
    group.add_argument("--api-key", "--api_key", action="append", default=[], metavar="KEY", help="ask for a key; repeatable")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help=f"keys, one a line; {KEYS_VARIABLE} has them too, by commas")
    group.add_argument("--slots", type=int, default=EngineSpec(Path()).slots, metavar="N", help="texts that a model writes at once")
    group.add_argument("--max-queue", type=int, default=_PLAIN.max_queue, metavar="N", help="requests that wait for a slot; 429 beyond")
    group.add_argument("--max-connections", type=int, default=_PLAIN.max_connections, metavar="N", help="open at once; 503 beyond")
    group.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer (the context)")
    group.add_argument("--max-body", type=int, default=_PLAIN.max_body_bytes, metavar="BYTES", help="the largest request")
    group.add_argument("--timeout", type=float, default=_PLAIN.timeout_s, metavar="S", help="of a request: its answer is cut there")
    group.add_argument(
        "--no-prefix-cache", action="store_true", help="read each prompt anew, so that probabilities do not depend on what came before"
    )


def run(args: argparse.Namespace) -> int:
    settings, models = settings_of(args), models_of(args)
    serve_until_ended(args, settings, models, path="/v1")
    return 0


def serve_until_ended(
    args: argparse.Namespace,
    settings: ServerSettings,
    models: "list[Served]",
    *,
    path: str,
    then: Callable[[str], object] = lambda address: None,
) -> None:
    """Prints the address when it answers, with the `path` that people are to use, and calls `then` with it."""
    from flatlm.serving.running import serve

    def ready(address: str, server: object) -> None:
        names = [name for one in models for name in one.names]
        if args.json:
            base.print_json({"address": address, "models": names, "pid": os.getpid()})
        else:
            print(f"{', '.join(names)} at {address}{path} (Ctrl-C ends it)")
        sys.stdout.flush()
        then(address + path)

    asyncio.run(serve(models, settings, ready=ready))


def models_of(args: argparse.Namespace, *, plain: bool = False) -> "list[Served]":
    """What is to be served; checkpoints are exported now. `plain`: those without a chat template get that one. Raises a FlatlmError."""
    from flatlm.serving.running import Served

    found = served.open_served(args, plain=plain)
    if any(not name.strip() for name in args.model_name):
        raise RuntimeFileError("--model-name is empty: give a name, or leave it out for the file's")
    names = args.model_name or [Path(one.name).stem if one.file.name == one.name else one.name for one in found]
    if len(names) != len(found):
        raise RuntimeFileError(f"{len(names)} --model-name for {len(found)} models: give one for each, in their order")
    return [Served(_spec(args, one), (name,), one.template) for one, name in zip(found, names, strict=True)]


def settings_of(args: argparse.Namespace) -> ServerSettings:
    """What `add_server_arguments` say. Raises RuntimeFileError for what is not possible."""
    for name, value, least in (
        ("slots", args.slots, 1),
        ("max-queue", args.max_queue, 0),
        ("max-connections", args.max_connections, 1),
        ("max-tokens", args.max_tokens, 1),
        ("max-body", args.max_body, 1),
        ("port", args.port, 0),
    ):
        if value is not None and value < least:
            raise RuntimeFileError(f"--{name} {value} is not possible: it is {least} or more")
    if args.port > 65535:
        raise RuntimeFileError(f"--port {args.port} is not possible: it is 65535 at most")
    if not (args.timeout > 0 and math.isfinite(args.timeout)):
        raise RuntimeFileError(f"--timeout {args.timeout} is not possible: it is a number of seconds above 0")
    return ServerSettings(
        host=args.host,
        port=args.port,
        allowed_hosts=tuple(args.allow_host),
        api_keys=tuple(_keys(args)),
        max_queue=args.max_queue,
        max_connections=args.max_connections,
        max_tokens=args.max_tokens,
        max_body_bytes=args.max_body,
        timeout_s=args.timeout,
    )


def _spec(args: argparse.Namespace, model: served.Served) -> EngineSpec:
    return EngineSpec(
        model.file,
        tokenizer=model.tokenizer_source,
        threads=model.threads,
        slots=args.slots,
        share_beginnings=not args.no_prefix_cache,
        draft=model.draft,
    )


def _keys(args: argparse.Namespace) -> list[str]:
    """From the command line, a file and the environment. One that was given and has no key in it would let everybody in."""
    if any(not key.strip() for key in args.api_key):
        raise RuntimeFileError("--api-key is empty: give a key, or leave it out")
    try:
        lines = [] if args.api_key_file is None else _stripped(args.api_key_file.read_text("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise RuntimeFileError(f"{args.api_key_file}: is not UTF-8 text; write one key a line") from error
    if args.api_key_file is not None and not lines:
        raise RuntimeFileError(f"{args.api_key_file}: has no keys in it; write one a line")
    from_environment = _stripped(os.environ.get(KEYS_VARIABLE, "").split(","))
    if KEYS_VARIABLE in os.environ and not from_environment:
        raise RuntimeFileError(f"{KEYS_VARIABLE} has no keys in it: give them, with commas between them, or unset it")
    return [*_stripped(args.api_key), *lines, *from_environment]


def _stripped(keys: Sequence[str]) -> list[str]:
    return [key.strip() for key in keys if key.strip()]
