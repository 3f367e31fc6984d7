"""The small tasks of tests/generative/harness/tasks, and the harness without a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.harness.tasks import require_harness

TASKS = Path(__file__).parent / "generative" / "harness" / "tasks"


@contextmanager
def offline_harness(home: Path) -> Iterator[None]:
    """The harness, or a skip; its libraries' caches of data lie in `home`."""
    try:
        require_harness()
    except RuntimeFileError as error:
        pytest.skip(str(error))
    import datasets.config
    import huggingface_hub.constants as hub

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HOME", str(home)), ("HF_HUB_OFFLINE", "1"), ("DISABLE_MULTIPROC", "1")):
            patch.setenv(name, value)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(hub, "HF_HUB_OFFLINE", True)
        yield


def copy_tasks(folder: Path) -> Path:
    """A copy of them, whose definitions know where it is."""
    for source in TASKS.iterdir():
        (folder / source.name).write_text(source.read_text("utf-8").replace("DATA_DIR", str(folder)), "utf-8")
    return folder
