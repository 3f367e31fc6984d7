"""What belongs to a Python file that a user names: the files beside it that it imports, and that those import. Read, never run."""

import ast
from collections.abc import Iterator
from pathlib import Path

from flatlm.utilities.digests import digest_of, file_digest


def imported_beside(path: Path) -> tuple[Path, ...]:
    """The files below its folder that a file imports, itself left out, in order of their paths.

    Imports within functions count; what a program only computes the name of is not seen. Raises OSError where one cannot be read.
    """
    path = path.resolve()
    found, ahead = {path}, [path]
    while ahead:
        file = ahead.pop()
        for name, folder in _imports(file, path.parent):
            at = folder
            for part in name.split(".") if name else ():
                at = at / part
                here = {
                    each for each in (at.with_name(f"{part}.py"), at / "__init__.py") if each.is_relative_to(path.parent) and each.is_file()
                } - found
                found |= here
                ahead += here
    return tuple(sorted(found - {path}))


def code_digest(path: Path) -> str:
    """Of a file and of all that it imports from beside it. Raises OSError."""
    beside = imported_beside(path)
    folder = path.resolve().parent
    return digest_of([file_digest(path), *((str(each.relative_to(folder)), file_digest(each)) for each in beside)])


def _imports(file: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Each name that may be a module's, and the folder that it would lie in."""
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # who runs it says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, root) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = root if node.level == 0 else [file.parent, *file.parent.parents][: node.level][-1]
            module = node.module or ""
            yield module, folder
            yield from ((f"{module}.{alias.name}".strip("."), folder) for alias in node.names)
