"""Python files that the user has named: run as modules, each once, with their own folder in sight."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from flatlm.authoring.author_code import author_code
from flatlm.errors import CustomModelError
from flatlm.utilities.code_files import code_digest, imported_beside
from flatlm.utilities.digests import digest_of

PREFIX = "flatlm_user_code_"
"""How the names of such modules begin."""
_BESIDE: set[str] = set()
"""Modules that such files have imported from their folders."""


def load_file(path: Path) -> ModuleType:
    """The module that a file is. Run again only where the file has changed, or what it imports from beside it.

    Raises CustomModelError, with the line, for a file that cannot be run.
    """
    path = path.resolve()
    try:
        digest = digest_of([str(path), code_digest(path)])[:16]
        beside = imported_beside(path)
    except OSError as error:
        raise CustomModelError(f"{path} cannot be read ({error.strerror}): name a Python file") from error
    name = f"{PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CustomModelError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    _forget(path.parent, {str(each) for each in beside})
    before = set(sys.modules)
    sys.modules[name] = module  # where dataclasses look for it
    sys.path.insert(0, str(path.parent))  # as for a script: it may import what lies beside it
    try:
        with author_code(path, "the file"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
        _BESIDE.update(name for name in set(sys.modules) - before if _lies_in(path.parent, name))
    return module


def _forget(folder: Path, files: set[str]) -> None:
    """Let a file's imports be read anew: not as they were before, nor as another folder has them."""
    importlib.invalidate_caches()
    for name in list(_BESIDE):
        own = folder / name.split(".")[0]
        if {str(own.with_suffix(".py")), str(own / "__init__.py")} & files:
            sys.modules.pop(name, None)
            _BESIDE.discard(name)


def _lies_in(folder: Path, name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", None)
    return not name.startswith(PREFIX) and file is not None and Path(file).is_relative_to(folder)
