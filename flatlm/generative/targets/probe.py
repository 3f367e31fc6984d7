"""Is a board fit to measure on? A small program is run by its Python; what it lacks becomes one error with the way out."""

import json
from dataclasses import dataclass
from typing import Self

from flatlm.errors import TargetError
from flatlm.generative.benchmarking.package import LEAST_PYTHON, LEAST_RUNTIME

# Runs on any Python since 2.7, to say that it is too old. Places are tried in this order: /tmp is often in memory.
PROBE = """
import json, os, platform, sys
found = {"python": list(sys.version_info[:2]), "machine": platform.machine(), "runtime": "", "problem": "", "places": []}
if sys.version_info >= (3, 8):
    try:
        from importlib.metadata import version
        found["runtime"] = version("ai-edge-litert")
        import ai_edge_litert.compiled_model
    except Exception as error:
        found["problem"] = str(error)
for place in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp", os.path.expanduser("~")):
    if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
        disk = os.statvfs(place)
        found["places"].append([place, disk.f_bavail * disk.f_frsize])
print(json.dumps(found))
"""
_WHEELS = ("x86_64", "aarch64", "arm64", "amd64")
"""Processors that ai-edge-litert is built for."""


@dataclass(frozen=True)
class Probe:
    """What a board says of itself."""

    python: tuple[int, ...]
    machine: str
    runtime: str
    """ai-edge-litert's version; empty where it is not installed."""
    problem: str
    """Why it cannot be imported; empty where it can."""
    places: tuple[tuple[str, int], ...]
    """Folders for temporary files, and the free bytes of each, from the best."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        places = tuple((str(place), int(free)) for place, free in fields["places"])
        return cls(tuple(fields["python"]), fields["machine"], fields["runtime"], fields["problem"], places)

    def require_fit(self, target: str, python: str) -> None:
        """TargetError for what it lacks. `python`: the interpreter's name there."""
        if self.python < LEAST_PYTHON:
            raise TargetError(
                f"{target}: its {python} is Python {_dotted(self.python)}, and {_dotted(LEAST_PYTHON)} is the least: "
                "install a later one, and give --remote-python PATH"
            )
        if not self.runtime:
            if self.machine.lower() not in _WHEELS:
                raise TargetError(
                    f"{target}: its processor is {self.machine}; ai-edge-litert is built for x86_64 and aarch64: install a 64-bit system"
                )
            raise TargetError(
                f"{target}: its {python} has no ai-edge-litert. There: python3 -m venv flatlm && flatlm/bin/pip install ai-edge-litert; "
                "then give --remote-python flatlm/bin/python"
            )
        if _numbers(self.runtime) < LEAST_RUNTIME:
            raise TargetError(
                f"{target}: its ai-edge-litert is {self.runtime}, and {_dotted(LEAST_RUNTIME)} is the least: "
                f"{python} -m pip install -U ai-edge-litert"
            )
        if self.problem:
            raise TargetError(f"{target}: ai-edge-litert {self.runtime} cannot be imported there: {' '.join(self.problem.split())}")

    def place_for(self, size: int, target: str, file: str) -> str:
        """The folder to put `size` bytes into; TargetError where none has room."""
        for place, free in self.places:
            if free >= size:
                return place
        most = max(self.places, key=lambda item: item[1], default=("any folder", 0))
        needed, has = f"{size / 1e6:,.1f} MB", f"{most[1] / 1e6:,.1f} MB"
        raise TargetError(f"{target}: {file} needs {needed} there, and {most[0]} has {has}: free some space, or set TMPDIR there")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _numbers(version: str) -> tuple[int, ...]:
    """`2.3.0rc1` as (2, 3): what is compared."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
