"""An export in a process of its own: what it raises is raised here, one error of the same kind; what it prints is nobody's answer."""

from pathlib import Path

import pytest

import flatlm
from flatlm.errors import CheckpointError, CustomModelError, ExportError, FlatlmError, VerificationFailed
from flatlm.generative.engine_config import EngineConfig
from flatlm.generative.export_process import _portable, exported_apart
from flatlm.quantize.encode import NonFiniteWeightError

DEMO = Path(flatlm.__file__).parent / "assets" / "demo_model"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(config: EngineConfig) -> Exception:
    with pytest.raises(Exception) as caught:
        exported_apart(DEMO, config)
    return caught.value


def test_what_the_user_can_mend_is_raised_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = refused(EngineConfig(kv_cache_len=4096))
    assert type(error) is ExportError and "--kv-cache-len 4096 is longer than" in str(error)
    assert "plan_export" in error.__notes__[0]  # where it was, for --debug
    missing = tmp_path / "missing.py"
    error = refused(EngineConfig(custom=missing))
    assert type(error) is CustomModelError and str(missing) in str(error)
    assert capfd.readouterr() == ("", "")


def test_code_of_an_author_may_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "model.py"
    code.write_text("import os\nprint('by print')\nos.write(1, b'by the descriptor')\n")
    assert type(refused(EngineConfig(custom=code))) is CustomModelError  # it names no model
    out, err = capfd.readouterr()
    assert out == "" and "by print" in err and "by the descriptor" in err


def test_a_process_that_is_lost_is_named(tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    error = refused(EngineConfig(custom=code))
    assert type(error) is ExportError
    assert str(error).startswith(f"{DEMO}: the process that was to export it was ended by SIGKILL, perhaps for want of memory; ")


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(FlatlmError, match="set XDG_CACHE_HOME"):
        exported_apart(DEMO, EngineConfig())


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (VerificationFailed("too far"), VerificationFailed, "too far"),
        (NonFiniteWeightError(3), CheckpointError, "row 3 holds NaN"),
        (KeyError("x"), RuntimeError, "KeyError: 'x'"),
        (OSError("odd"), RuntimeError, "OSError: odd"),
    ],
)
def test_kinds_of_errors(error: Exception, kind: type[Exception], said: str) -> None:
    found = _portable(error)
    assert type(found) is kind and said in str(found)


def test_a_file_stays_named() -> None:
    found = _portable(PermissionError(13, "Permission denied", "weights.bin"))
    assert isinstance(found, PermissionError) and (found.filename, found.strerror) == ("weights.bin", "Permission denied")
