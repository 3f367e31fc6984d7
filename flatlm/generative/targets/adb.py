"""A phone behind `adb`: LiteRT's own program is copied there with the file, run, and its output read into the usual record."""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import join, quote

from flatlm.errors import TargetError
from flatlm.generative.benchmarking.measure import check_request, plan_tokens
from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest, Machine
from flatlm.generative.model_file import ModelFile, read_model_file
from flatlm.generative.targets.adb_device import ROOT, Device
from flatlm.generative.targets.benchmark_output import last_line
from flatlm.generative.targets.device_programs import WHERE_FROM, Findings, Plan, identify
from flatlm.progress import Progress

_THREADS = 4
"""By default, where there are as many cores: a phone's others are slow ones, on which the fast would wait. LiteRT-LM's default too."""
_PROCESSORS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}
"""By ELF's number for the machine, Android's name of it."""


class AdbTarget:
    """`adb`, the only device there is, or `adb:SERIAL`. Needs `BenchmarkRequest.runner`, a program built for the device."""

    def __init__(self, name: str) -> None:
        kind, _, serial = name.partition(":")
        if kind != "adb":
            raise TargetError(f"{name} is not a target of adb: write adb, or adb:SERIAL")
        self.name = name
        self._serial = serial or None

    def benchmark(self, request: BenchmarkRequest, progress: Progress | None = None) -> BenchmarkRecord:
        """Copies the program and the file to the device, measures, and removes both.

        Peak memory is the largest of the processes that were run. Energy is not measured: the phone is charging.
        """
        file = read_model_file(request.file)
        runner = Runner.read(request.runner, self.name)
        tell = progress or _silent
        device = Device.find(self._serial)
        facts = device.facts()
        _check_fit(device, facts, file, runner)
        plan = _plan(file, request, cores=_whole(facts.get("cores")))
        bundle = file.offset > 0
        with device.workspace() as path:
            place = _Place(device, path, runner, "model.litertlm" if bundle else "model.tflite", tell)
            place.copy(runner.path, *runner.libraries)
            program = identify(runner.path.name, place.help())
            if bundle != (program.suffix == ".litertlm"):
                kind = "a bundle" if bundle else "not a bundle"
                raise TargetError(
                    f"--runner {runner.path.name} is {program.name}, which reads {program.suffix} files; {file.path.name} is {kind}: "
                    f"take {WHERE_FROM}"
                )
            program.check(plan)
            place.copy(file.path, name=place.model)
            findings = program.measure(plan, place)
            hot = device.facts().get("heat", "")
        return _record(self.name, plan, findings, _machine(facts, f"{program.name}, {runner.fingerprint}"), _noise({**facts, "heat": hot}))


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Runner:
    """The program, and the libraries beside it that it may load."""

    path: Path
    processor: str
    """Empty: a script."""
    libraries: tuple[Path, ...]
    fingerprint: str
    """Its name and the start of its SHA-256: it does not tell its version."""

    @classmethod
    def read(cls, path: Path | None, target: str) -> "Runner":
        if path is None:
            raise TargetError(f"{target} needs --runner, a program that measures on the device: {WHERE_FROM}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TargetError(f"--runner {path} cannot be read: {error.strerror}; it is {WHERE_FROM}") from error
        processor = _processor(content[:20])
        if processor is None:
            raise TargetError(f"--runner {path} is not a program (no ELF, no script): it is {WHERE_FROM}")
        libraries = [item for item in sorted(path.parent.glob("*.so")) if processor and _processor(_head(item)) == processor]
        return cls(path, processor, tuple(libraries), f"{path.name} {hashlib.sha256(content).hexdigest()[:12]}")

    @property
    def size(self) -> int:
        return sum(item.stat().st_size for item in (self.path, *self.libraries))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(20)


def _processor(head: bytes) -> str | None:
    """Android's name of the processor that an ELF file is for; empty for a script; None for anything else."""
    if head.startswith(b"#!"):
        return ""
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return None
    number = int.from_bytes(head[18:20], "little")
    return _PROCESSORS.get(number, f"ELF machine {number}")


def _check_fit(device: Device, facts: Mapping[str, str], file: ModelFile, runner: Runner) -> None:
    able = [name for name in dict.fromkeys(facts.get("abis", "").split(",")) if name]
    if runner.processor and able and runner.processor not in able:
        raise TargetError(
            f"--runner {runner.path.name} is for {runner.processor}; {device.serial} runs {', '.join(able)}: build it for {able[0]}"
        )
    space = re.search(r"(\d+) +(\d+) +(\d+) +\d+%", facts.get("space", ""))
    needed = runner.size + file.path.stat().st_size
    if space and int(space[3]) * 1024 < needed:
        raise TargetError(
            f"{device.serial} has {int(space[3]) * 1024 / 1e6:,.1f} MB free in {ROOT}; {file.path.name} and the program need "
            f"{needed / 1e6:,.1f} MB: make room"
        )


def _plan(file: ModelFile, request: BenchmarkRequest, *, cores: int) -> Plan:
    """With the defaults and the limits of every other target."""
    check_request(request)
    prefill, decode = plan_tokens(request, file.cache_length)
    threads = request.threads or min(_THREADS, cores or _THREADS)
    depths = tuple(sorted(set(request.depths)))
    return Plan(file, prefill, decode, depths, request.runs, request.warmup, threads, request.weight_cache)


@dataclass
class _Place:
    """The directory on the device, with the program in it."""

    device: Device
    path: str
    runner: Runner
    model: str
    tell: Progress
    runs: int = 0
    held: set[str] = field(default_factory=set)

    def copy(self, *files: Path, name: str | None = None) -> None:
        for file in files:
            total = file.stat().st_size
            tell = partial(self._copied, f"copying {file.name}", total)
            tell(0)
            self.device.push(file, f"{self.path}/{name or file.name}", tell)
            tell(total)

    def _copied(self, stage: str, total: int, done: int) -> None:
        self.tell(stage, done, total)

    def help(self) -> str:
        """Of both kinds of program: --help alone hides most flags of one, --helpfull says nothing of the other."""
        program = quote(f"./{self.runner.path.name}")
        code, text = self._shell(f"chmod 755 {program} && {{ {program} --help; {program} --helpfull; }} 2>&1")
        if code in (126, 127) or code > 128:
            raise TargetError(f"--runner {self.runner.path.name} does not run on {self.device.serial}: {last_line(text)}")
        return text

    def run(self, arguments: Sequence[str]) -> str:
        self.runs += 1
        self.tell("measuring", self.runs, 0)
        code, text = self._shell(f"{join([f'./{self.runner.path.name}', *arguments])} 2>&1", endless=True)
        if code:
            ending = f"was ended by signal {code - 128}" if code > 128 else f"ended with code {code}"
            raise TargetError(f"{self.runner.path.name} {ending} on {self.device.serial}: {last_line(text)}")
        return text

    def put(self, name: str, content: bytes) -> None:
        if name not in self.held:
            with tempfile.NamedTemporaryFile() as file:
                file.write(content)
                file.flush()
                self.device.push(Path(file.name), f"{self.path}/{name}")
            self.held.add(name)

    def put_zeros(self, name: str, size: int) -> None:
        if name not in self.held:
            code, text = self._shell(f"truncate -s {size} {quote(name)}")  # a hole: it takes no space
            if code:
                raise TargetError(f"{self.device.serial}: {name} cannot be made: {last_line(text)}")
            self.held.add(name)

    def _shell(self, command: str, *, endless: bool = False) -> tuple[int, str]:
        """In the directory, its libraries found, without input."""
        whole = f"cd {self.path} && {{ export LD_LIBRARY_PATH={self.path}; {command}; }} </dev/null"
        return self.device.shell(whole, timeout=None) if endless else self.device.shell(whole)


def _whole(text: str | None) -> int:
    match = re.search(r"\d+", text or "")
    return int(match[0]) if match else 0


def _machine(facts: Mapping[str, str], runtime: str) -> Machine:
    processor = facts.get("soc") or facts.get("board") or ""
    model = facts.get("model", "")
    system = [f"Android {facts['release']}" if facts.get("release") else "", f"Linux {facts['kernel']}" if facts.get("kernel") else ""]
    return Machine(
        cpu=f"{processor} ({model})" if processor and model else processor or model,
        architecture=facts.get("architecture", ""),
        cores=_whole(facts.get("cores")),
        memory_bytes=_whole(facts.get("memory")) * 1024,
        system=", ".join(filter(None, system)),
        runtime=runtime,
    )


def _noise(facts: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    if heat := _whole(facts.get("heat")):
        found.append(f"the device is hot, and slows its processor down (thermal status {heat})")
    if facts.get("saver") == "1":
        found.append("the device's battery saver is on")
    return tuple(found)


def _record(target: str, plan: Plan, findings: Findings, machine: Machine, noise: tuple[str, ...]) -> BenchmarkRecord:
    return BenchmarkRecord(
        file=plan.file.path.name,
        file_bytes=plan.file.path.stat().st_size,
        target=target,
        machine=machine,
        threads=plan.threads,
        weight_cache=findings.weight_cache,
        prefill_tokens=plan.prefill,
        decode_tokens=plan.decode,
        depths=findings.depths,
        time_to_first_token_s=findings.time_to_first_token_s,
        load_s=findings.load_s,
        peak_rss_bytes=findings.peak_rss_bytes,
        noise=noise,
    )
