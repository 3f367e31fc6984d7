"""What code from outside the package says what a model is, by its content: exports that are kept are kept for that code alone."""

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from flatlm.authoring.outside import outside_code
from flatlm.errors import ConfigError
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.digests import file_digest
from flatlm.utilities.reading import Reading


def code_digests(directory: Path, reading: Reading) -> dict[str, str]:
    """Of a class or builder from outside: its name, and the digests of the files that it is made of, by their names.

    Those are its own file, and what that imports of its own package or folder. Empty for FlatLM's own families, and where nothing takes
    the checkpoint, which its export says.
    """
    found: dict[str, str] = {}
    if reading.custom is None and reading.family is None:
        with suppress(ConfigError):
            for each in outside_code(ConfigReader.from_directory(directory), reading.module_map):
                found[f"{each.__module__}.{each.__qualname__}"] = ""
                found |= {name: file_digest(file) for name, file in _files(sys.modules.get(each.__module__), {})}
    return found


def _files(module: ModuleType | None, seen: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """A module's file, and those of what it has imported that lie beside it or belong to its package."""
    file = getattr(module, "__file__", None)
    if module is None or file is None or module.__name__ in seen:
        return
    own = seen[module.__name__] = Path(file)
    yield module.__name__, own
    for name in _imported(own, module.__package__ or ""):
        other = sys.modules.get(name)
        beside = Path(getattr(other, "__file__", None) or "/").parent == own.parent
        if other is not None and (beside or other.__name__.split(".")[0] == module.__name__.split(".")[0]):
            yield from _files(other, seen)


def _imported(file: Path, package: str) -> Iterator[str]:
    """The names that a file's imports may mean; none where it is not Python text."""
    with suppress(ValueError, SyntaxError, ImportError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (each.name for each in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = resolve_name("." * node.level + (node.module or ""), package)
                yield base
                yield from (f"{base}.{each.name}" for each in node.names)
