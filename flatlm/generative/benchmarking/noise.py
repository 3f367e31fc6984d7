"""What else ran on the machine while something was measured: reasons to doubt the figures. Linux only; elsewhere it knows of none."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from flatlm.generative.benchmarking.energy import discharging_battery
from flatlm.generative.benchmarking.sysfs import ROOT, number, text

OTHERS_SHARE = 0.05
"""Of one core, that other processes may take. A quiet system's own take 1 to 3 %; more moves medians by as much as they may differ."""
BEFORE_SHARE = 0.2
"""Of one core, in the moment before the start: it is short, and a tick of the clock is 5 % of it."""
STEAL_SHARE = 0.02
"""Of the cores' time, that a hypervisor may give to others."""
STALL_SHARE = 0.02
"""Of the time, that any process may wait for memory."""
SWAPPED_BYTES = 16 << 20
"""Moved to or from swap: a desktop's idle processes move less."""
BEFORE_S = 0.2
_TICK_S = 0.01
"""The kernel may count a core's time in ticks of that length: what each look at it may be off by."""
_PI_THROTTLED = 0b1111
"""Raspberry Pi's firmware, now: too little voltage, frequency capped, throttled, near the limit of heat."""


@dataclass(frozen=True)
class _Look:
    """Counters at one moment; seconds, of all cores together."""

    wall: float
    ours: float
    busy: float
    stolen: float
    stalled: float
    swapped: int
    throttles: int

    @classmethod
    def at(cls, root: Path) -> Self:
        ticks = [int(field) for field in text(root / "proc/stat").partition("\n")[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, stolen = ticks if len(ticks) == 8 else [0] * 8
        unit = os.sysconf("SC_CLK_TCK")
        return cls(
            wall=time.monotonic(),
            ours=_own_seconds(),
            busy=(user + nice + system + irq + softirq) / unit,
            stolen=stolen / unit,
            stalled=_stalled(root),
            swapped=_swapped(root),
            throttles=_throttles(root),
        )


class NoiseWatch:
    """Watches the machine during `with` blocks, one or several; before the first it looks on for a moment. Not for nested blocks.

    What this process and the children that it waited for take is not noise.
    """

    def __init__(self, root: Path = ROOT) -> None:
        """`root`: where `proc` and `sys` lie."""
        self._root = root
        self._spans: list[tuple[_Look, _Look]] = []
        self._start: _Look | None = None
        self._before: tuple[_Look, _Look] | None = None
        self._states: set[str] = set()
        self._able = (root / "proc/stat").is_file()

    def __enter__(self) -> Self:
        if self._able:
            if self._before is None:
                first = _Look.at(self._root)
                time.sleep(BEFORE_S)
                self._before = first, _Look.at(self._root)
            self._start = _Look.at(self._root)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._start:
            self._spans.append((self._start, _Look.at(self._root)))
            self._states |= set(_states(self._root))
            self._start = None

    def reasons(self) -> tuple[str, ...]:
        """One short clause each, of all blocks so far; empty where it was quiet, or where the system does not tell."""
        if not self._spans:
            return ()
        found = []
        wall = self._sum("wall")
        cores = os.cpu_count() or 1
        if self._before:
            before = _others(*self._before) / (self._before[1].wall - self._before[0].wall)
            if before > BEFORE_SHARE:
                found.append(f"other processes took {before:.0%} of a core before the start")
        others = sum(_others(*span) for span in self._spans)
        # Looks are off by a tick for each core, up or down: their sum grows as a random walk does.
        if others > OTHERS_SHARE * wall + 2 * _TICK_S * (len(self._spans) * cores) ** 0.5:
            found.append(f"other processes took {others / wall:.0%} of a core")
        if (stolen := self._sum("stolen")) > STEAL_SHARE * wall * cores + _TICK_S * len(self._spans):
            found.append(f"the hypervisor gave {stolen / (wall * cores):.0%} of the cores' time to others")
        if (stalled := self._sum("stalled")) > STALL_SHARE * wall:
            found.append(f"processes waited {stalled / wall:.0%} of the time for memory")
        if (swapped := self._sum("swapped")) > SWAPPED_BYTES:
            found.append(f"{swapped / 1e6:,.0f} MB were swapped")
        if self._sum("throttles") > 0:
            found.append("the processor slowed down because of heat or power")
        return (*found, *sorted(self._states))

    def _sum(self, name: str) -> float:
        return float(sum(getattr(end, name) - getattr(start, name) for start, end in self._spans))


def _others(start: _Look, end: _Look) -> float:
    """Seconds that other processes ran, over all cores."""
    return end.busy - start.busy - (end.ours - start.ours)


def _own_seconds() -> float:
    import resource  # not on Windows

    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _stalled(root: Path) -> float:
    """Seconds in which some process waited for memory; 0 where the kernel does not count them."""
    first = text(root / "proc/pressure/memory").partition("\n")[0]
    return int(first.rpartition("total=")[2]) * 1e-6 if "total=" in first else 0.0


def _swapped(root: Path) -> int:
    """Bytes, both ways."""
    fields = dict(line.split() for line in text(root / "proc/vmstat").splitlines() if line.startswith("pswp"))
    return sum(map(int, fields.values())) * os.sysconf("SC_PAGE_SIZE")


def _throttles(root: Path) -> int:
    """How often an x86 processor was throttled."""
    return sum(number(path) or 0 for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"))


def _states(root: Path) -> list[str]:
    """What slows it now."""
    found = []
    if discharging_battery(root):
        found.append("it runs from its battery")
    if any(_cools_cpu(device) and number(device / "cur_state") for device in root.glob("sys/class/thermal/cooling_device*")):
        found.append("the processor is slowed down because of heat")
    firmware = text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    with suppress(ValueError):
        if firmware and int(firmware, 16) & _PI_THROTTLED:
            found.append("the board's firmware slows it down: too little voltage, or too hot")
    for policy in root.glob("sys/devices/system/cpu/cpufreq/policy*"):
        # Drivers with "pstate" in their name choose the frequency themselves, whatever this governor is called.
        if text(policy / "scaling_governor") == "powersave" and "pstate" not in text(policy / "scaling_driver"):
            found.append("the CPU frequency governor is powersave")
    return found


def _cools_cpu(device: Path) -> bool:
    kind = text(device / "type")
    return kind == "Processor" or "cpufreq" in kind
