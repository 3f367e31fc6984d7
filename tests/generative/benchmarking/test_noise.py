"""The watch on a folder that looks like Linux's, and on the real one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatlm.generative.benchmarking.noise import NoiseWatch

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A folder with `proc` and `sys`, at rest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stat()
        self.write("proc/vmstat", "nr_free_pages 5\npswpin 0\npswpout 0\n")
        self.write("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 total=0\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def stat(self, *, busy: float = 0, stolen: float = 0) -> None:
        """Seconds since the start."""
        self.write("proc/stat", f"cpu  {int(busy * TICKS)} 0 0 999 0 0 0 {int(stolen * TICKS)} 0 0\ncpu0 1 2 3\n")

    def watched(self, change: object = None) -> tuple[str, ...]:
        """The reasons after a block of a tenth of a second in which something changed."""
        watch = NoiseWatch(self.root)
        with watch:
            time.sleep(0.1)
            if callable(change):
                change()
        return watch.reasons()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_quiet(machine):
    assert machine.watched() == ()


def test_another_process(machine):
    (reason,) = machine.watched(lambda: machine.stat(busy=1))
    assert reason.startswith("other processes took ") and reason.endswith("% of a core")


def test_own_work_is_no_noise(machine):
    def work():
        start = time.process_time()
        while time.process_time() < start + 0.4:
            pass
        machine.stat(busy=0.4)

    assert machine.watched(work) == ()


def test_a_child_that_was_waited_for_is_no_noise(machine):
    def work():
        before = os.times()
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass"], check=True)
        after = os.times()
        machine.stat(busy=after.children_user + after.children_system - before.children_user - before.children_system)

    assert machine.watched(work) == ()


def test_blocks_add_up_and_what_lies_between_does_not_count(machine):
    watch = NoiseWatch(machine.root)
    for _ in range(3):
        with watch:
            time.sleep(0.02)
        machine.stat(busy=10)
    assert watch.reasons() == ()
    for busy in (20, 30, 40):
        with watch:
            machine.stat(busy=busy)
    assert len(watch.reasons()) == 1


def test_before_the_start(machine, monkeypatch):
    monkeypatch.setattr("flatlm.generative.benchmarking.noise.time.sleep", lambda seconds: machine.stat(busy=1))
    watch = NoiseWatch(machine.root)
    with watch:
        pass
    assert "before the start" in watch.reasons()[0]


def swapped(machine):
    machine.write("proc/vmstat", f"pswpin {(40 << 20) // os.sysconf('SC_PAGE_SIZE')}\npswpout 0\n")


def stalled(machine):
    machine.write("proc/pressure/memory", "some avg10=9.00 avg60=0.00 avg300=0.00 total=90000\n")


def throttled(machine):
    machine.write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3")


def on_battery(machine):
    for name, value in (("type", "Battery"), ("status", "Discharging")):
        machine.write(f"sys/class/power_supply/BAT0/{name}", value)


def mouse_battery(machine):
    on_battery(machine)
    machine.write("sys/class/power_supply/BAT0/scope", "Device")


def hot(machine):
    machine.write("sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0")
    machine.write("sys/class/thermal/cooling_device0/cur_state", "2")


def fan(machine):
    machine.write("sys/class/thermal/cooling_device0/type", "pwm-fan")
    machine.write("sys/class/thermal/cooling_device0/cur_state", "2")


def low_voltage(machine):
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "0x50005")


def low_voltage_once(machine):
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "0x50000")


def powersave(machine, driver="cpufreq-dt"):
    machine.write("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave")
    machine.write("sys/devices/system/cpu/cpufreq/policy0/scaling_driver", driver)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda machine: machine.stat(stolen=1), "the hypervisor gave"),
        (swapped, "42 MB were swapped"),
        (stalled, "of the time for memory"),
        (throttled, "slowed down because of heat or power"),
        (on_battery, "it runs from its battery"),
        (mouse_battery, None),
        (hot, "the processor is slowed down because of heat"),
        (fan, None),
        (low_voltage, "too little voltage"),
        (low_voltage_once, None),
        (powersave, "governor is powersave"),
        (lambda machine: powersave(machine, "intel_pstate"), None),
    ],
)
def test_other_reasons(machine, change, reason):
    found = machine.watched(lambda: change(machine))
    if reason is None:
        assert found == ()
    else:
        assert len(found) == 1 and reason in found[0]


def test_nothing_is_known_without_proc(tmp_path):
    with NoiseWatch(tmp_path) as watch:
        pass
    assert watch.reasons() == ()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_a_real_process_beside(tmp_path):
    code = "import time\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            watch = NoiseWatch()
            with watch:
                time.sleep(0.5)
        finally:
            other.kill()
    assert any("other processes took" in reason for reason in watch.reasons())
