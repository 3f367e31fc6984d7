"""Where a file can be measured: this machine, a board behind ssh, a phone behind adb. Each gives the same record."""

from typing import Protocol

from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest
from flatlm.progress import Progress


class Target(Protocol):
    """A machine that can run a file."""

    name: str
    """As the user wrote it."""

    def benchmark(self, request: BenchmarkRequest, progress: Progress | None = None) -> BenchmarkRecord:
        """Measure there. Raises TargetError where the machine cannot be reached, is not fit for it, or goes away; leaves nothing there."""
        ...
