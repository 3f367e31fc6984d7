import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative import memory
from flatlm.generative.memory import available_bytes, cache_directory, packed_weights, peak_resident_bytes, section_as_file
from flatlm.generative.runner import Runner


def last_logits(path, ids, **options):
    with Runner.open(path, **options) as runner:
        runner.prefill(ids)
        return runner.step(1)


def entries(directory):
    return sorted(file.name for file in directory.iterdir())


def test_weights_packed_anywhere_are_the_same(tiny_file, random_ids, tmp_path):
    ids = random_ids(20)
    expected = last_logits(tiny_file, ids, weight_cache=False)
    for where in (True, tmp_path / "cache", tmp_path / "cache"):
        np.testing.assert_array_equal(last_logits(tiny_file, ids, weight_cache=where), expected)


def test_a_kept_cache_is_used_again(tiny_file, tmp_path):
    Runner.open(tiny_file, weight_cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    assert entry.stat().st_size > 1000
    written = entry.read_bytes()
    os.utime(entry, (1, 1))
    Runner.open(tiny_file, weight_cache=tmp_path)
    assert entries(tmp_path) == [entry.name]
    assert entry.read_bytes() == written
    assert entry.stat().st_mtime > 1  # marked as used


def test_a_rewritten_model_never_meets_its_old_cache(tiny_file, toy, random_ids, tmp_path):
    ids, cache, path = random_ids(20), tmp_path / "cache", tmp_path / "model.tflite"
    shutil.copy(tiny_file, path)
    before, stat = last_logits(path, ids, weight_cache=cache), path.stat()
    head = toy.head.numpy()
    content = path.read_bytes()
    assert content.count(head.tobytes()) == 1
    with path.open("r+b") as file:  # in place: the same size and inode
        file.seek(content.index(head.tobytes()))
        file.write((2 * head).tobytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and time
    np.testing.assert_allclose(last_logits(path, ids, weight_cache=cache), 2 * before, rtol=1e-5)
    assert len(entries(cache)) == 1  # the old one is gone


def test_kept_caches_are_bounded(tiny_file, tmp_path):
    cache = tmp_path / "cache"
    for i in range(7):
        path = tmp_path / f"model{i}.tflite"
        shutil.copy(tiny_file, path)
        Runner.open(path, weight_cache=cache)
        newest = max(cache.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (i + 1, i + 1))
    assert sorted(file.stat().st_mtime for file in cache.iterdir()) == [4, 5, 6, 7]


def test_a_failed_load_leaves_no_cache(tiny_file, tmp_path):
    with pytest.raises(KeyboardInterrupt), packed_weights(tiny_file, tmp_path) as path:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt
    assert entries(tmp_path) == []


def test_what_a_killed_process_left_is_removed_after_a_day(tiny_file, tmp_path):
    new, old = tmp_path / "a.packed-part", tmp_path / "b.packed-part"
    new.touch()
    old.touch()
    os.utime(old, (1, 1))
    Runner.open(tiny_file, weight_cache=tmp_path)
    assert new.exists() and not old.exists()


def test_nowhere_to_write_means_memory(tiny_file, tmp_path):
    with packed_weights(tiny_file, tiny_file / "below a file") as path:
        assert path == ":memory"


def test_little_disk_means_memory(tiny_file, tmp_path, monkeypatch):
    """XNNPACK aborts the process where the disk fills."""
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=tiny_file.stat().st_size))
    with packed_weights(tiny_file, tmp_path) as path:
        assert path == ":memory"
    assert entries(tmp_path) == []


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "flatlm"
    for other in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert cache_directory() == Path.home() / ".cache" / "flatlm"


def test_section_is_a_file_of_its_own_while_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(range(100)))
    with section_as_file(whole, 0, 100) as path:
        assert path == whole
    with section_as_file(whole, 16, 50) as path:
        assert path.read_bytes() == bytes(range(16, 66))
        assert entries(tmp_path / "cache" / "flatlm") == []


def test_errors_inside_a_section_pass_through(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(100))
    with pytest.raises(OSError, match="inside"), section_as_file(whole, 16, 50):
        raise OSError("inside")


def test_no_room_for_a_section(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free=10))
    whole = tmp_path / "whole"
    whole.write_bytes(bytes(100))
    with pytest.raises(RuntimeFileError, match="whole: 50 bytes of it must be copied"), section_as_file(whole, 16, 50):
        pass


def test_peak_is_this_process_own():
    """Not what its parent had when it was started, as ru_maxrss says."""
    ballast = np.ones(400 << 20, np.uint8)
    code = "from flatlm.generative.memory import peak_resident_bytes as peak; a = b'1' * (60 << 20); print(peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[2])
    assert 60 << 20 < int(child.stdout) < 300 << 20
    assert peak_resident_bytes() > ballast.nbytes


def machine(root: Path, *, available: int, limit: str | None = None, used: int = 0, old_files: int = 0) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\nBuffers: 1 kB\n")
    if limit is not None:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {old_files}\n")
    return root


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"available": 8 << 30}, 8 << 30),
        ({"available": 8 << 30, "limit": str(2 << 30), "used": 1 << 30, "old_files": 1 << 20}, (1 << 30) + (1 << 20)),
        ({"available": 1 << 20, "limit": str(2 << 30), "used": 1 << 30}, 1 << 20),
        ({"available": 8 << 30, "limit": "max", "used": 1 << 30}, 8 << 30),
        ({"available": 8 << 30, "limit": str(1 << 30), "used": 2 << 30}, 0),
    ],
)
def test_available_memory_is_the_machines_or_the_containers(tmp_path, options, expected):
    assert available_bytes(machine(tmp_path, **options)) == expected


def test_available_memory_is_unknown_elsewhere(tmp_path):
    assert available_bytes(tmp_path) is None
    assert available_bytes() > 1 << 20
