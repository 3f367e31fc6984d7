"""Code of an author's, run so that whatever it raises is one clear line."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path

from flatlm.errors import CustomModelError, FlatlmError

OTHER_PACKAGES = {"ftllm": "from flatlm.llm import ComputeGraph"}
"""What to import in the place of packages that published files import."""


def prints_aside() -> AbstractContextManager[object]:
    """Within it, what code prints goes to stderr: stdout is for the answer of a verb, which other programs read."""
    return redirect_stdout(sys.stderr)


@contextmanager
def author_code(source: Path, what: str) -> Iterator[None]:
    """Whatever the code in the file `source` raises becomes a CustomModelError with file and line; FlatLM's own errors pass.

    `what` is named in the error. What it prints goes to stderr.
    """
    try:
        with prints_aside():
            yield
    except FlatlmError:
        raise
    except SyntaxError as error:
        raise CustomModelError(f"{Path(error.filename or source).name}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(source)]
        where = f"{source.name}:{lines[-1]}" if lines else source.name
        said = str(error).strip().splitlines() or [""]
        raise CustomModelError(f"{where}: {what} raised {type(error).__name__}: {said[0]}{_hint(error)}") from error


def _hint(error: BaseException) -> str:
    package = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return f"; write {OTHER_PACKAGES[package]}" if package in OTHER_PACKAGES else ""
