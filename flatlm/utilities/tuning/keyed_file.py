"""What a search has measured so far, kept as it goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatlm.convert.atomic_file import atomic_output


class KeyedFile:
    """A JSON file of `values` by name, which lie under `table`, measured for one `key`: what is there for another key is not used."""

    def __init__(self, path: Path, key: Mapping[str, object], table: str) -> None:
        self.path, self.key, self.table = path, json.loads(json.dumps(key)), table
        self.values: dict[str, Any] = {}
        try:
            kept = json.loads(path.read_text("utf-8"))
            if kept["key"] == self.key:
                self.values = dict(kept[table])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing usable: it is measured anew

    def add(self, values: Mapping[str, object]) -> None:
        """Keep more, safely: whole or not at all. Raises OutputError."""
        self.values |= values
        with atomic_output(self.path) as temporary:
            temporary.write_text(json.dumps({"key": self.key, self.table: self.values}, indent=1) + "\n", "utf-8")
