"""Which class is the model of an architecture: classes from outside the package, by the name that config.json has in `architectures`.

`MODULE_MAP.update({"MyForCausalLM": MyForCausalLM})`, or the class as text, "package.module.Class". Installed packages have the same as
entry points of the group `flatlm.models`; a user names a file that defines a MODULE_MAP (`--module-map`, `custom_module_map`).
"""

import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from flatlm.authoring.user_code import load_file
from flatlm.errors import ConfigError

MODULE_MAP: dict[str, Any] = {}
"""Architecture to class, or to its full name as text."""

_ADDED: dict[str, dict[str, Any]] = {}
"""What the files that were run have added to MODULE_MAP, by their modules' names."""

ENTRY_POINTS = "flatlm.models"
"""An entry point's name is an architecture and its object the class; or its object is a module, which registers builders and classes."""


@dataclass(frozen=True)
class ModuleReference:
    """Where a class is: in a user's file under an architecture's name, or in a module.

    `search`: where this process found modules, for the compiler's process to find them too.
    """

    module: str
    name: str
    file: Path | None = None
    search: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """The class. Raises ConfigError where it cannot be imported."""
        if self.file is not None:
            return _from_file(self.file)[self.name]
        sys.path += [folder for folder in self.search if folder not in sys.path]
        try:
            found: Any = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the class {self.module}.{self.name} cannot be imported: {error}") from error
        return found

    def __str__(self) -> str:
        return f"{self.file}: {self.name}" if self.file is not None else f"{self.module}.{self.name}"


def find_module(architecture: str, file: Path | None = None) -> ModuleReference | None:
    """The class for an architecture: of the user's file, of MODULE_MAP, of installed packages, whichever has it first.

    Raises ConfigError for what is no class, or cannot be reached from another process.
    """
    if file is not None and architecture in _from_file(file):
        reference = ModuleReference("", architecture, file.resolve())
    elif architecture in MODULE_MAP:
        reference = _reference(architecture, MODULE_MAP[architecture])
    else:
        found = [point for point in _entry_points() if point.name == architecture and point.attr]
        if not found:
            return None
        reference = ModuleReference(found[0].module, found[0].attr, search=tuple(sys.path))
    if not isinstance(reference.resolve(), type):
        raise ConfigError(f"the module map's entry for {architecture}, {reference}, is not a class")
    return reference


def load_outside(file: Path | None) -> None:
    """Run what may register builders and classes: the user's file, and installed packages whose entry point is a module."""
    for point in _entry_points():
        if not point.attr:
            try:
                importlib.import_module(point.module)
            except Exception as error:  # whatever that package raises
                raise ConfigError(
                    f"the entry point {point.name} of {ENTRY_POINTS} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
                    "uninstall or repair its package"
                ) from error
    if file is not None:
        _from_file(file)


def known_architectures(file: Path | None) -> list[str]:
    """All that have a class from outside."""
    own = [] if file is None else list(_from_file(file))
    return sorted({*own, *MODULE_MAP, *(point.name for point in _entry_points() if point.attr)})


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=ENTRY_POINTS))


def _from_file(file: Path) -> dict[str, Any]:
    """The classes that a user's file maps: its own MODULE_MAP, and what it adds to this module's, which counts for that file alone."""
    before = dict(MODULE_MAP)
    try:
        module = load_file(file)
        added = {name: entry for name, entry in MODULE_MAP.items() if before.get(name) is not entry}
    finally:
        MODULE_MAP.clear()
        MODULE_MAP.update(before)
    added = _ADDED.setdefault(module.__name__, added)
    own = getattr(module, "MODULE_MAP", {})
    mapped = added if own is MODULE_MAP else {**added, **own} if isinstance(own, dict) else own
    if not isinstance(mapped, dict) or not all(isinstance(name, str) for name in mapped):
        raise ConfigError(f"{file}: MODULE_MAP must be a dict of architectures and classes, not {type(mapped).__name__}")
    classes = {}
    for architecture, entry in mapped.items():
        if isinstance(entry, str) and "." not in entry:
            if not hasattr(module, entry):
                raise ConfigError(f"{file}: MODULE_MAP has {entry!r} for {architecture}, and there is no {entry} in the file")
            entry = getattr(module, entry)
        classes[architecture] = _reference(architecture, entry).resolve() if isinstance(entry, str) else entry
    return classes


def _reference(architecture: str, entry: Any) -> ModuleReference:
    search = tuple(sys.path)
    if isinstance(entry, str):
        module, _, name = entry.rpartition(".")
        if not module:
            raise ConfigError(f"the module map has {entry!r} for {architecture}: write package.module.Class")
        return ModuleReference(module, name, search=search)
    if not isinstance(entry, type):
        raise ConfigError(f"the module map's entry for {architecture} is a {type(entry).__name__}: give a class, or its name as text")
    if entry.__module__ == "__main__" or "<locals>" in entry.__qualname__:
        raise ConfigError(
            f"the class {entry.__qualname__} for {architecture} is in {entry.__module__}, where the compiler's process cannot import it: "
            "put it into a file of its own, and name that with --module-map (custom_module_map)"
        )
    return ModuleReference(entry.__module__, entry.__qualname__, search=search)
