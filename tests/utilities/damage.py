"""Damage to files: whatever happens to a checkpoint's bytes, reading it is right or refused."""

from pathlib import Path

from hypothesis import strategies as st

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint


def damage_and_read(path: Path, data: st.DataObject, *, most: int) -> None:
    """Change 1 to `most` bytes of the only file of a checkpoint; reading all of it gives the shapes it names, or a CheckpointError."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, most))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with Checkpoint.open(path.parent) as checkpoint:
            for name, record in checkpoint.tensors.items():
                if record.unsupported is None:
                    assert checkpoint.read(name).shape == record.shape
    except CheckpointError:
        pass
