"""What belongs to a file of a user's code: the files beside it, or of its package, that it imports, and that those import.

Read, never run.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flatlm.utilities.digests import digest_of, file_digest


@dataclass(frozen=True)
class _Root:
    """A folder that names of modules begin in; `package`: the one of them that counts (None: all that lie there)."""

    folder: Path
    package: str | None = None


def imported_beside(path: Path, *, package: str = "") -> tuple[Path, ...]:
    """The files below its folder, or of its `package` (a dotted name, where it is in one), that a file imports, itself left out; sorted.

    Imports within functions count; what a program only computes the name of is not seen. Raises OSError where one cannot be read.
    """
    path = path.resolve()
    roots = [_Root(path.parent)]
    if package:
        parts = package.split(".")
        roots.append(_Root(path.parents[len(parts)], parts[0]))
    below = path.parent if not package else roots[1].folder / str(roots[1].package)
    found, ahead = {path}, [path]
    while ahead:
        file = ahead.pop()
        for name, folder in _imports(file, roots):
            at = folder
            for part in name.split(".") if name else ():
                at = at / part
                here = {each for each in (at.with_name(f"{part}.py"), at / "__init__.py") if each.is_relative_to(below) and each.is_file()}
                ahead += here - found
                found |= here
    return tuple(sorted(found - {path}))


def code_digest(path: Path, *, package: str = "") -> str:
    """Of a file and of all that it imports from beside it, or of its package. Raises OSError."""
    beside = imported_beside(path, package=package)
    return digest_of([file_digest(path), *((each.name, file_digest(each)) for each in beside)])


def _imports(file: Path, roots: list[_Root]) -> Iterator[tuple[str, Path]]:
    """Each name that may be a module's, and the folder that it would lie in."""
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # who runs it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _from_roots([alias.name], roots)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
            if node.level == 0:
                yield from _from_roots(names, roots)
            else:
                folder = [file.parent, *file.parent.parents][: node.level][-1]
                yield from ((name, folder) for name in names)


def _from_roots(names: list[str], roots: list[_Root]) -> Iterator[tuple[str, Path]]:
    for name in names:
        for root in roots:
            if root.package in (None, name.split(".")[0]):
                yield name, root.folder
