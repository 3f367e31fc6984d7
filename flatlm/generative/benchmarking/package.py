"""The runner that is copied to a device: the worker and the modules that it imports, as they are, in one small zip file that Python runs.

The device needs Python 3.11 and `pip install ai-edge-litert`, which brings numpy; nothing of it is compiled for one processor.
"""

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from flatlm.generative.benchmarking.session import WORKER

RUNNER_NAME = "flatlm_runner.zip"
LEAST_PYTHON = (3, 11)
LEAST_RUNTIME = (2, 3)
"""Of ai-edge-litert: older ones have another CompiledModel."""
_ROOT = Path(__file__).parents[3]
_MAIN = f"from {WORKER} import main\n\nmain()\n"
_DATE = (1980, 1, 1, 0, 0, 0)


@cache
def runner_zip() -> bytes:
    """The same modules give the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _DATE), _MAIN)
        for path in runner_files():
            entry = zipfile.ZipInfo(path.relative_to(_ROOT).as_posix(), _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return content.getvalue()


def runner_files() -> list[Path]:
    """The worker's file, and those of the modules of this package that it and they import when they are loaded.

    What a function imports when it is called is left out: the worker is given a .tflite file, and needs no reader of bundles.
    """
    found: set[Path] = set()
    waiting = [WORKER]
    while waiting:
        for path in _files_of(waiting.pop()):
            if path not in found:
                found.add(path)
                waiting += _imports(path)
    return sorted(found)


def _files_of(module: str) -> Iterator[Path]:
    """A module's file and those of the packages around it."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = _ROOT.joinpath(*parts[:end])
        if path.is_dir():
            yield path / "__init__.py"
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports as it is loaded."""
    for statement in ast.parse(path.read_text("utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.split(".")[0] == "flatlm":
            yield statement.module
            yield from (f"{statement.module}.{name.name}" for name in statement.names)  # a module of a package, or none
