"""Python files that the user has named: run as modules, each once, with their own folder in sight."""

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from flatlm.authoring.author_code import author_code
from flatlm.errors import CustomModelError

PREFIX = "flatlm_user_code_"
"""How the names of such modules begin."""


def load_file(path: Path) -> ModuleType:
    """The module that a file is. Run again only where the file has changed.

    Raises CustomModelError, with the line, for a file that cannot be run.
    """
    path = path.resolve()
    try:
        digest = sha256(f"{path}\0".encode() + path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise CustomModelError(f"{path} cannot be read ({error.strerror}): name a Python file") from error
    name = f"{PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CustomModelError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
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
    return module
