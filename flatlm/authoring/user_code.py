"""Python files that the user has named: run as modules, each once, with their own folder in sight."""

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from flatlm.errors import ConfigError

PREFIX = "flatlm_user_code_"
"""How the names of such modules begin."""


def load_file(path: Path) -> ModuleType:
    """The module that a file is. Run again only where the file has changed. Raises ConfigError for a file that cannot be run."""
    path = path.resolve()
    try:
        digest = sha256(f"{path}\0".encode() + path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a Python file") from error
    name = f"{PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # as for a script: it may import what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        del sys.modules[name]
        raise ConfigError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
