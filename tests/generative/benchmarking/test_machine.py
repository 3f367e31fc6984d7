import platform
from pathlib import Path

import pytest

from flatlm.generative.benchmarking.machine import this_machine

PI = "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
PHONE = "CPU implementer : 0x41\nCPU part : 0xd46\n" * 2 + "CPU implementer : 0x51\nCPU part : 0x001\n"


@pytest.mark.parametrize(
    ("cpuinfo", "board", "cpu"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 9B14\n\nmodel name\t: AMD EPYC 9B14\n", "", "AMD EPYC 9B14"),
        (PI * 4, "Raspberry Pi 5 Model B Rev 1.0\0", "Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)"),
        (PHONE, "", "Cortex-A510 + Qualcomm part 0x1"),
        ("model name\t: ARMv7 Processor rev 4 (v7l)\n" + PI, "", "Cortex-A76"),
        ("CPU implementer\t: 0x99\nCPU part\t: 0xd03\n", "", "implementer 0x99 part 0xd03"),
        ("isa\t: rv64imafdc\n", "StarFive VisionFive V2\0", "StarFive VisionFive V2"),
    ],
)
def test_processors(tmp_path, cpuinfo, board, cpu):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8000000 kB\nMemFree: 1 kB\n")
    if board:
        (tmp_path / "proc/device-tree/model").write_text(board)
    found = this_machine(tmp_path)
    assert (found.cpu, found.memory_bytes) == (cpu, 8_000_000 * 1024)


def test_this_one():
    found = this_machine()
    assert found.architecture == platform.machine()
    assert found.cores >= 1
    assert found.runtime.startswith("ai-edge-litert 2.")
    assert found.system.startswith(platform.system())
    if Path("/proc/meminfo").exists():
        assert found.memory_bytes > 1 << 28 and found.cpu
