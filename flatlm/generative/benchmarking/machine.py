"""Where it ran: processor, memory, system, runtime."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flatlm.generative.benchmarking.record import Machine
from flatlm.generative.benchmarking.sysfs import ROOT, text
from flatlm.generative.loading import available_cores

_ARM = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
"""Arm's own cores, by the part number of /proc/cpuinfo."""
_IMPLEMENTERS = {
    0x41: "Arm",
    0x42: "Broadcom",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "Nvidia",
    0x51: "Qualcomm",
    0x61: "Apple",
    0xC0: "Ampere",
}


def this_machine(root: Path = ROOT) -> Machine:
    """Of the machine that this process runs on. `root`: where `proc` lies."""
    return Machine(
        cpu=_cpu(root),
        architecture=platform.machine(),
        cores=available_cores(),
        memory_bytes=_memory(root),
        system=_system(),
        runtime=_runtime(),
    )


def _cpu(root: Path) -> str:
    """`AMD EPYC 9B14`; on ARM the kinds of cores, and the board: `Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)`."""
    fields: dict[str, list[str]] = {}
    for line in text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), []).append(value.strip())
    if "model name" in fields and "CPU part" not in fields:
        return fields["model name"][0]
    kinds = zip(fields.get("CPU implementer", []), fields.get("CPU part", []), strict=False)
    cores = " + ".join(dict.fromkeys(_arm_core(int(maker, 16), int(part, 16)) for maker, part in kinds))
    board = text(root / "proc/device-tree/model").rstrip("\0")
    if not cores and not board and platform.system() == "Darwin":
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return f"{cores} ({board})" if cores and board else cores or board or platform.processor()


def _arm_core(implementer: int, part: int) -> str:
    if implementer == 0x41 and part in _ARM:
        return _ARM[part]
    return f"{_IMPLEMENTERS.get(implementer, f'implementer {implementer:#x}')} part {part:#x}"


def _memory(root: Path) -> int:
    for line in text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    if platform.system() == "Darwin":
        with suppress(OSError, subprocess.CalledProcessError):
            return int(subprocess.check_output(["sysctl", "-n", "hw.memsize"]))
    return 0


def _system() -> str:
    """`Linux 6.1`: without what a distribution adds to the release."""
    return f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}".strip()


def _runtime() -> str:
    try:
        return f"ai-edge-litert {version('ai-edge-litert')}"
    except PackageNotFoundError:
        return ""
