"""Joules that a machine says it took, from Linux's sysfs: Intel's and AMD's counters, sensors of a board, a battery.

Whole packages, boards or batteries: what else runs there, and what it takes when idle, is in it.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from flatlm.generative.benchmarking.sysfs import ROOT, number, text

_SHORTEST_COUNTED_S = 0.02
"""A counter is brought up to date about once a millisecond: a shorter time would be off by more than 5 %."""
_SHORTEST_SAMPLED_S = 1.0
"""A sensor or a fuel gauge shows a mean of up to that long."""
_SAMPLE_S = 0.1
_OTHER_DEVICES = ("amdgpu", "i915", "nouveau", "nvme", "xe")
"""hwmon names of what is not the processor."""


@dataclass
class Energy:
    """What a span of time took; `joules` is None until it has ended, and where the machine does not tell."""

    joules: float | None = None


class EnergyMeter:
    """Finds the machine's best source once; `span` measures with it."""

    def __init__(self, root: Path = ROOT) -> None:
        """`root`: where `sys` lies."""
        self._counters = list(_counters(root))
        self._power = None if self._counters else _power_source(root)

    @contextmanager
    def span(self) -> Iterator[Energy]:
        """Measures what runs inside."""
        energy = Energy()
        if self._counters:
            with self._counted(energy):
                yield energy
        elif self._power:
            with _sampled(self._power, energy):
                yield energy
        else:
            yield energy

    @contextmanager
    def _counted(self, energy: Energy) -> Iterator[None]:
        before, start = [counter.read() for counter in self._counters], time.perf_counter()
        yield
        after = [counter.read() for counter in self._counters]
        spans = [counter.between(a, b) for counter, a, b in zip(self._counters, before, after, strict=True)]
        if time.perf_counter() - start >= _SHORTEST_COUNTED_S:
            energy.joules = sum(spans) or None  # one that stands still says nothing


@dataclass(frozen=True)
class _Counter:
    """Microjoules since some time, which begin again after `wrap` (0: never)."""

    path: Path
    wrap: int

    def read(self) -> int:
        return number(self.path) or 0

    def between(self, before: int, after: int) -> float:
        """Joules; at most one wrap lies in between (the registers of a package hold minutes)."""
        gone = after - before
        return (gone + self.wrap + 1 if gone < 0 and self.wrap else max(gone, 0)) * 1e-6


def _counters(root: Path) -> Iterator[_Counter]:
    """One for each processor package: its parts (cores, memory) are in it already, and are left out."""
    found = False
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        if text(zone / "name").startswith("package") and number(zone / "energy_uj") is not None:
            found = True
            yield _Counter(zone / "energy_uj", number(zone / "max_energy_range_uj") or 0)
    if not found:
        for path in sorted(root.glob("sys/class/hwmon/hwmon*/energy*_input")):
            label = text(path.with_name(path.name.replace("_input", "_label")))
            if label.startswith("Esocket") and number(path) is not None:
                yield _Counter(path, 0)


def _power_source(root: Path) -> Callable[[], float | None] | None:
    """What reads watts: a board's sensors, else a battery that is being used."""
    sensors = [
        path
        for path in sorted(root.glob("sys/class/hwmon/hwmon*/power*_input"))
        if text(path.with_name("name")) not in _OTHER_DEVICES and number(path)
    ]
    if sensors:
        # Of several rails the one with the most feeds the others.
        largest = max(sensors, key=lambda path: number(path) or 0)
        return lambda: _scaled(number(largest), 1e-6)
    battery = discharging_battery(root)
    if battery is None or _battery_watts(battery) is None:
        return None
    return lambda: _battery_watts(battery)


def discharging_battery(root: Path = ROOT) -> Path | None:
    """The folder of the machine's battery, while it runs from it."""
    for supply in sorted(root.glob("sys/class/power_supply/*")):
        own = text(supply / "type") == "Battery" and text(supply / "scope") != "Device"  # not a mouse's
        if own and text(supply / "status") == "Discharging":
            return supply
    return None


def _battery_watts(battery: Path) -> float | None:
    if power := number(battery / "power_now"):
        return abs(power) * 1e-6
    current, voltage = number(battery / "current_now"), number(battery / "voltage_now")
    return abs(current) * voltage * 1e-12 if current and voltage else None  # some gauges count what flows out below 0


@contextmanager
def _sampled(watts: Callable[[], float | None], energy: Energy) -> Iterator[None]:
    """Integrates power that a thread reads ten times a second."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def read() -> None:
        if (value := watts()) is not None:
            samples.append((time.perf_counter(), value))

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            read()

    read()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    read()
    if len(samples) > 1 and samples[-1][0] - samples[0][0] >= _SHORTEST_SAMPLED_S:
        steps = pairwise(samples)
        energy.joules = sum((b_time - a_time) * (a + b) / 2 for (a_time, a), (b_time, b) in steps)


def _scaled(value: int | None, factor: float) -> float | None:
    return None if value is None else value * factor
