"""`flatlm VERB ...`: finds the verb, imports only that, and turns errors into one clear line and an exit status.

0: done. 1: a check failed (an exported file is further from its reference than its recipe allows). 2: bad input. 3: a fault in FlatLM.
"""

import atexit
import contextlib
import difflib
import os
import sys
from typing import NoReturn

from flatlm import __version__

VERBS = {
    "export": "turn a checkpoint into a .tflite file or a .litertlm bundle, and prove it",
    "tune": "search for the best recipe under a budget of size, KL or bits, and export it",
    "check": "can this checkpoint be exported? sizes and memory foretold; reads no weights",
    "inspect": "what an exported file holds: signatures, operators, weights, manifest",
    "verify": "run an exported file against the checkpoint's reference",
    "generate": "text from an exported file",
    "chat": "talk to an exported file, or to a checkpoint, in the terminal",
    "predict": "a task on texts: masked words, embeddings, labels, names, titles",
    "webui": "a page to talk to exported files, two side by side, and the same server",
    "serve": "an OpenAI-compatible server over exported files",
    "evaluate": "perplexity of an exported file, its distance from the checkpoint, and lm-eval tasks",
    "benchmark": "speed and memory of an exported file",
    "compare": "speeds of several files that take turns, with how sure their ratios are",
    "sweep": "export, verify, evaluate and benchmark models x recipes x lengths x targets from a YAML file",
    "report": "what is known of the exported files in a folder, as a page or Markdown",
    "models": "the model families that can be exported",
    "recipes": "the quantization recipes",
    "demo": "export, prove, run and measure the small model that ships with FlatLM",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    verb = arguments[0]
    if verb in ("-V", "--version"):
        print(f"flatlm {__version__}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, 1)
        print(f"flatlm: there is no {verb!r}" + (f"; did you mean {close[0]}?" if close else "; see flatlm --help"), file=sys.stderr)
        return 2
    from flatlm.commands.base import run_verb

    return run_verb(verb, VERBS[verb], arguments[1:])


def _help() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return f"""usage: flatlm VERB ... [--json] [--debug]

Language-model checkpoints to verified, statically shaped flatbuffers for on-device runtimes.

{lines}

flatlm VERB --help explains each. Every verb takes --json for one machine-readable object on stdout."""


def entry() -> NoReturn:
    """The `flatlm` command: `main`, then an end without tearing everything down.

    Unloading torch and the runtime takes half a second, and the runtime's destructors log to stderr.
    """
    try:
        status = main()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    entry()
