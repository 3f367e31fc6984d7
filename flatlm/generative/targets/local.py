"""The machine that FlatLM runs on: the file runs in a process of its own, which does nothing else."""

from flatlm.errors import TargetError
from flatlm.generative.benchmarking.measure import measure
from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest
from flatlm.generative.benchmarking.session import local_transport
from flatlm.progress import Progress


class LocalTarget:
    """See `Target`."""

    def __init__(self, name: str = "local") -> None:
        self.name = name

    def benchmark(self, request: BenchmarkRequest, progress: Progress | None = None) -> BenchmarkRecord:
        refuse_runner(self.name, request)
        return measure(local_transport(request.file), request, self.name, progress)


def refuse_runner(name: str, request: BenchmarkRequest) -> None:
    """TargetError for a program to measure with, where FlatLM brings its own."""
    if request.runner:
        raise TargetError(f"{name} is measured with FlatLM's own runner: --runner {request.runner} is for adb targets")
