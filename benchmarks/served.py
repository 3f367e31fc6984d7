"""A server in processes of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def served(file: Path, tokenizer: Path | None, options: Sequence[object]) -> Iterator[dict[str, Any]]:
    """What `flatlm serve --json` says of itself: its address, models, pid. It ends with the context."""
    command = [sys.executable, "-m", "flatlm.cli", "serve", str(file), "--json", "--port", "0", *map(str, options)]
    command += ["--tokenizer", str(tokenizer)] if tokenizer else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
