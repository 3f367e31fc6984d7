"""Which files a GGUF checkpoint is, by their names alone."""

import re
from pathlib import Path

from flatlm.errors import CheckpointError

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only weights of a directory; None where it is no such path.

    Raises CheckpointError where a directory holds nothing but several of them.
    """
    if not path.is_dir():
        return path if path.suffix == ".gguf" or _begins_as_gguf(path) else None
    names = sorted(child.name for child in path.iterdir())
    if any(Path(name).suffix in (".safetensors", ".bin", ".pt", ".pth") or name.endswith(".index.json") for name in names):
        return None
    found = [name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")]  # mmproj: an image encoder
    first = [name for name in found if not (shard := _SHARD.search(name)) or int(shard[1]) == 1]
    if len(first) > 1:
        raise CheckpointError(f"{path}: holds several GGUF files ({', '.join(first[:5])}); give the path of one of them")
    return path / first[0] if first else None


def _begins_as_gguf(path: Path) -> bool:
    """Some stores (Ollama's) name files by their digests."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def shards(path: Path) -> list[Path]:
    """All files of a split checkpoint, of which any is named; else the file alone."""
    if not (match := _SHARD.search(path.name)):
        return [path]
    paths = [path.with_name(f"{path.name[: match.start()]}-{i:05d}-of-{match[2]}.gguf") for i in range(1, int(match[2]) + 1)]
    missing = [shard.name for shard in paths if not shard.exists()]
    if missing:
        raise CheckpointError(f"{path}: is one of {match[2]} files, of which {', '.join(missing[:5])} are not there; download them too")
    return paths
