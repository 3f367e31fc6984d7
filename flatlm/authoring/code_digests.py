"""What code from outside the package says what a model is, by its content: exports that are kept are kept for that code alone."""

import sys
from contextlib import suppress
from pathlib import Path

from flatlm.authoring.outside import outside_code
from flatlm.errors import ConfigError
from flatlm.utilities.code_files import code_digest
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.reading import Reading


def code_digests(directory: Path, reading: Reading) -> dict[str, str]:
    """Of each class or builder from outside, by its name: the digest of its file, with what that imports of its own package or folder.

    Empty for FlatLM's own families, and where nothing takes the checkpoint, which its export says. A class that no file defines has no
    digest. Raises OSError where a file cannot be read.
    """
    found: dict[str, str] = {}
    if reading.custom is None and reading.family is None:
        with suppress(ConfigError):
            for each in outside_code(ConfigReader.from_directory(directory), reading.module_map):
                module = sys.modules.get(each.__module__)
                file = getattr(module, "__file__", None)
                package = getattr(module, "__package__", None) or ""
                found[f"{each.__module__}.{each.__qualname__}"] = "" if file is None else code_digest(Path(file), package=package)
    return found
