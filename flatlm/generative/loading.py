"""A file's model loaded by the LiteRT runtime, on the CPU, without its log on the terminal."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, TypeVar

from flatlm.errors import RuntimeFileError
from flatlm.generative.memory import packed_weights, section_as_file

T = TypeVar("T")


class ModelPart(Protocol):
    """Where a model lies in its file."""

    @property
    def path(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


def load(file: ModelPart, make: Callable[[Any], T], *, threads: int, weight_cache: bool | Path = True) -> T:
    """What `make` makes of the file's CompiledModel, on the CPU; RuntimeFileError if the file cannot be run.

    `weight_cache`: as `Runner.open` has it.
    """
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

    if threads < 1:
        raise RuntimeFileError(f"{threads} threads were asked for; one is the least")
    with (
        section_as_file(file.path, file.offset, file.size) as model_path,
        packed_weights(file.path, weight_cache) as cache_path,
        _silenced() as said,
    ):
        cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=cache_path)
        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        try:
            return make(CompiledModel.from_file(str(model_path), environment=_environment(), options=options))
        except (RuntimeError, ValueError) as error:
            reasons = [line.removeprefix("ERROR: ") for line in said() if line.startswith("ERROR: ")] or [str(error)]
            raise RuntimeFileError(f"{file.path} cannot be loaded by the LiteRT runtime: {'; '.join(reasons)}") from error


def available_cores() -> int:
    """Cores that this process may use: two threads of one core count once, since they share the units that a model is run on."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return min(len(cores), _quota())


def _quota() -> int:
    """The cores that the container's time amounts to; more threads than those wait on one another."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, round(int(quota) / int(period)))
    return len(os.sched_getaffinity(0))


@cache
def _environment() -> Any:
    """The runtime's environment, one for the process. It looks for plug-ins of other processors: in a folder that has none."""
    from ai_edge_litert.environment import Environment, EnvironmentOptions

    none = str(Path(__file__).parent)
    return Environment.create(options=EnvironmentOptions(runtime_path=none, compiler_plugin_path=none, dispatch_library_path=none))


@contextmanager
def _silenced() -> Iterator[Callable[[], list[str]]]:
    """Keeps LiteRT's log off the terminal, to which it writes past sys.stderr; yields what reads it.

    All of the process's descriptor 2 goes to a file meanwhile; what others wrote to it is passed on afterwards.
    """
    with TemporaryFile() as log:

        def lines() -> list[str]:
            log.seek(0)
            return log.read().decode(errors="replace").splitlines()

        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if others := [line for line in lines() if not line.startswith(_LOG_STARTS)]:
                os.write(2, ("\n".join(others) + "\n").encode())


_LOG_STARTS = ("VERBOSE: ", "INFO: ", "WARNING: ", "ERROR: ", "\u2514 ")
