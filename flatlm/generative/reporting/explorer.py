"""Google's Model Explorer on an exported file, in the browser."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from flatlm.errors import OutputError, RuntimeFileError
from flatlm.generative.memory import section_as_file
from flatlm.generative.model_file import read_model_file

HOST = "127.0.0.1"
"""Model Explorer reads any file that it is asked for, so nobody else may ask."""
DEFAULT_PORT = 8080


def explore(file: Path, *, port: int = DEFAULT_PORT, open_browser: bool = True) -> None:
    """Serve the model's graph on this machine until interrupted. Model Explorer prints the address; it looks for newer versions of itself.

    `port`: the default one stands for the first free one from there on. Raises OutputError where Model Explorer is not installed, or the
    port is taken; RuntimeFileError where the file is no model.
    """
    if find_spec("model_explorer") is None:
        raise OutputError("--explorer needs Google's Model Explorer: pip install 'flatlm[explorer]'")
    with model_of(file) as path:
        import model_explorer

        config = model_explorer.config()
        config.add_model_from_path(str(path))
        try:
            model_explorer.visualize_from_config(config, host=HOST, port=port, no_open_in_browser=not open_browser)
        except SystemExit:  # its way to say so
            raise OutputError(f"port {port} is taken: give a free one with --port") from None


@contextmanager
def model_of(file: Path) -> Iterator[Path]:
    """A path to the model by itself: of a bundle, a temporary copy. Raises RuntimeFileError."""
    found = read_model_file(file)
    if found.offset == 0:
        yield file.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="flatlm-") as folder:
        copy = Path(folder) / f"{file.stem}.tflite"
        try:
            with section_as_file(file, found.offset, found.size) as section:
                shutil.copyfile(section, copy)
        except OSError as error:
            raise RuntimeFileError(f"{file}: its model of {found.size} bytes must be copied to {folder} ({error.strerror})") from error
        yield copy
