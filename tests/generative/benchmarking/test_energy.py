"""Energy from folders that look like Linux's sysfs."""

import time
from pathlib import Path

import pytest

from flatlm.generative.benchmarking.energy import EnergyMeter

BATTERY = "sys/class/power_supply/BAT0"


def rapl(root: Path, zone: str, energy: int, name: str = "package-0") -> None:
    folder = root / "sys/class/powercap" / zone
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", 999_999)):
        (folder / file).write_text(f"{value}\n")


def hwmon(root: Path, device: str, **files: object) -> None:
    folder = root / "sys/class/hwmon" / device
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in files.items():
        (folder / file).write_text(f"{value}\n")


def battery(root: Path, **files: object) -> None:
    folder = root / BATTERY
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in {"type": "Battery", "status": "Discharging", **files}.items():
        (folder / file).write_text(f"{value}\n")


def test_packages_add_up_and_their_parts_do_not_count_twice(tmp_path):
    for zone, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        rapl(tmp_path, zone, 100_000, name)
    with EnergyMeter(tmp_path).span() as energy:
        time.sleep(0.03)
        rapl(tmp_path, "intel-rapl:0", 600_000)
        rapl(tmp_path, "intel-rapl:0:0", 550_000, "core")
        rapl(tmp_path, "intel-rapl:1", 350_000, "package-1")
        rapl(tmp_path, "intel-rapl:2", 990_000, "psys")
        rapl(tmp_path, "intel-rapl-mmio:0", 600_000)
    assert energy.joules == pytest.approx(0.5 + 0.25)


def test_a_counter_that_begins_again(tmp_path):
    rapl(tmp_path, "intel-rapl:0", 900_000)
    with EnergyMeter(tmp_path).span() as energy:
        time.sleep(0.03)
        rapl(tmp_path, "intel-rapl:0", 100_000)
    assert energy.joules == pytest.approx(0.2)


def test_too_short_to_tell(tmp_path):
    rapl(tmp_path, "intel-rapl:0", 100_000)
    with EnergyMeter(tmp_path).span() as energy:
        rapl(tmp_path, "intel-rapl:0", 200_000)
    assert energy.joules is None


def test_sockets_of_amd(tmp_path):
    hwmon(tmp_path, "hwmon0", energy1_label="Ecore000", energy1_input=1, energy2_label="Esocket0", energy2_input=1_000_000)
    with EnergyMeter(tmp_path).span() as energy:
        time.sleep(0.03)
        hwmon(tmp_path, "hwmon0", energy1_input=9_000_000, energy2_input=3_000_000)
    assert energy.joules == pytest.approx(2)


def seconds_of(meter, duration=1.2):
    start = time.perf_counter()
    with meter.span() as energy:
        time.sleep(duration)
    return energy.joules, time.perf_counter() - start


def test_a_board_s_input_rail(tmp_path):
    hwmon(tmp_path, "hwmon0", name="ina3221", power1_input=8_000_000, power2_input=3_000_000)
    hwmon(tmp_path, "hwmon1", name="amdgpu", power1_input=90_000_000)
    joules, seconds = seconds_of(EnergyMeter(tmp_path))
    assert joules == pytest.approx(8 * seconds, rel=0.05)


@pytest.mark.parametrize(
    "gauge", [{"power_now": 5_000_000}, {"current_now": -1_000_000, "voltage_now": 5_000_000}], ids=["power", "current below 0"]
)
def test_a_battery(tmp_path, gauge):
    battery(tmp_path, **gauge)
    joules, seconds = seconds_of(EnergyMeter(tmp_path))
    assert joules == pytest.approx(5 * seconds, rel=0.05)


def test_a_sensor_needs_a_second(tmp_path):
    battery(tmp_path, power_now=5_000_000)
    assert seconds_of(EnergyMeter(tmp_path), 0.1)[0] is None


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_that_is_not_used_says_nothing(tmp_path, status):
    battery(tmp_path, power_now=5_000_000, status=status)
    assert seconds_of(EnergyMeter(tmp_path), 0.01)[0] is None


def test_what_cannot_be_read_is_unknown(tmp_path):
    rapl(tmp_path, "intel-rapl:0", 1)
    path = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    path.unlink()
    path.mkdir()  # reading fails for the administrator too
    with EnergyMeter(tmp_path).span() as energy:
        time.sleep(0.03)
    assert energy.joules is None
    with EnergyMeter(tmp_path / "nothing").span() as energy:
        time.sleep(0.03)
    assert energy.joules is None
