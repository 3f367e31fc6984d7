import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatlm.generative.sweeping.sweep import SweepReport, run_sweep
from tests.examples.references import Case, make_llama
from tests.generative.sweeping.made_steps import CALLS, STEPS

pytest.importorskip("yaml", reason="a sweep needs PyYAML: pip install 'flatlm[sweep]'")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_llama(Case("sweep"), directory)
    return directory


class Folder:
    """A sweep's file, and the folder of its results."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.out = path, path / "s.yaml", path / "out"

    def write(self, **content: Any) -> Path:
        """JSON is YAML."""
        self.file.write_text(json.dumps(content))
        return self.file

    def run(self, **options: Any) -> SweepReport:
        from flatlm.generative.sweeping.plan import read_sweep

        return run_sweep(read_sweep(self.file), self.out, steps=STEPS, **options)

    def calls(self) -> list[str]:
        """What was done since the last question, sorted."""
        path = self.out / CALLS
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(lines)


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """With a model `tiny`, a text, and the made steps within the cells' reach."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    (tmp_path / "text.txt").write_text("once upon a time")
    return Folder(tmp_path)


@pytest.fixture
def cells_of(folder: Folder) -> Callable[..., Path]:
    """Writes a sweep with a cell for each length of cache, evaluated and measured."""

    def write(*lengths: int, **more: Any) -> Path:
        content = {
            "models": ["tiny"],
            "recipes": ["none"],
            "kv_cache_len": list(lengths),
            "prefill": [[4]],
            "evaluate": {"text": "text.txt"},
            "benchmark": {"targets": ["local", "ssh://pi@board"]},
        }
        return folder.write(**{**content, **more})

    return write
