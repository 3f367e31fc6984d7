"""Small JSON files beside weights, such as config.json: not trusted, so that each may be anything."""

import json
from pathlib import Path
from typing import Any

from flatlm.errors import FlatlmError

MAX_BYTES = 16 << 20


def read_json(path: Path, error: type[FlatlmError], kind: type = dict, *, way_out: str = "") -> Any:
    """The file's value, which is of that kind. Raises `error`; `way_out` is what its message ends with."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise error(f"{path} is larger than {MAX_BYTES} bytes ({size}): this is not a configuration{way_out}")
        value = json.loads(path.read_text("utf-8"))
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from failure
    except (ValueError, RecursionError) as failure:
        raise error(f"{path} is not JSON ({failure}){way_out}") from failure
    if not isinstance(value, kind):
        raise error(f"{path} holds a {type(value).__name__}, not {'an object' if kind is dict else f'a {kind.__name__}'}{way_out}")
    return value
