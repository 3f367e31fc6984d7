"""The runner under an aarch64 Python, emulated by qemu: Debian's packages and PyPI's wheels for that processor, in a folder.

It downloads 40 MB, so it is run where FLATLM_TEST_AARCH64=1 asks for it; about a minute in all on a busy machine with 2 cores.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from flatlm.generative.benchmarking.package import RUNNER_NAME, runner_zip
from flatlm.generative.benchmarking.session import Session, Transport
from flatlm.generative.runner import Runner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("FLATLM_TEST_AARCH64") != "1", reason="downloads 40 MB: set FLATLM_TEST_AARCH64=1"),
]
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LIBRARIES = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5")
PYTHON = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib")
WHEELS = ("flatbuffers", "ml_dtypes", "protobuf", "tqdm", "typing-extensions", "backports.strenum")
CPU = "processor\t: {}\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"


def run(*command: object, **options: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=120, **options)
    if done.returncode:
        pytest.skip(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")


def install_packages(folder: Path, root: Path) -> None:
    """Debian's, for another processor, by apt with settings and a state of its own: the system's are not touched."""
    for part in ("state/lists/partial", "cache/archives/partial", "debs", "parts"):
        (folder / part).mkdir(parents=True)
    (folder / "state/status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian bookworm main\n")
    (folder / "apt.conf").write_text(
        f'APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }}; APT::Sandbox::User "root"; Acquire::Languages "none";\n'
        f'Acquire::http::Timeout "10"; Dir::State "{folder}/state"; Dir::State::status "{folder}/state/status";\n'
        f'Dir::Cache "{folder}/cache"; Dir::Etc::sourcelist "{folder}/sources.list"; Dir::Etc::sourceparts "{folder}/parts";\n'
        f'Dir::Etc::preferencesparts "{folder}/parts"; Dir::Etc::main "{folder}/none";\n'
    )
    environment = os.environ | {"APT_CONFIG": str(folder / "apt.conf")}
    run("apt-get", "-q", "update", env=environment)
    run("apt-get", "-q", "download", *PYTHON, *LIBRARIES, env=environment, cwd=folder / "debs")
    for package in (folder / "debs").glob("*.deb"):
        run("dpkg", "-x", package, root)


def install_wheels(folder: Path, site: Path) -> None:
    (folder / "wheels").mkdir()
    pinned = [f"{name}=={version(name)}" for name in ("ai-edge-litert", "numpy")]
    platforms = [word for name in ("2_17", "2_27", "2_28") for word in ("--platform", f"manylinux_{name}_aarch64")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--timeout",
        "10",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        folder / "wheels",
    ]
    run(*command, "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none", *platforms, *pinned, *WHEELS)
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """The command of an aarch64 Python, and its environment."""
    if not QEMU or not shutil.which("apt-get") or not KEYRING.exists():
        pytest.skip("needs qemu-user-static, apt and the keys of Debian's archive")
    folder = tmp_path_factory.mktemp("aarch64")
    root, site = folder / "root", folder / "site"
    install_packages(folder, root)
    install_wheels(folder, site)
    # Files of the root are read in place of the system's. The runtime ends by a fault where /proc/cpuinfo is of an x86.
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(CPU.format(core) for core in range(2)))
    (folder / RUNNER_NAME).write_bytes(runner_zip())
    environment = {"PYTHONPATH": f"{site}", "PYTHONHOME": f"{root}/usr", "PATH": os.environ["PATH"]}
    return folder / RUNNER_NAME, [QEMU, "-cpu", "max", "-L", str(root), f"{root}/usr/bin/python3.11"], environment


def test_a_session(board, tiny_file):
    runner, command, environment = board
    transport = Transport((*command, str(runner)), str(tiny_file), "x", lambda how, line: AssertionError(f"{how}: {line}"), environment)
    with Session(transport, answer_s=120) as session:
        assert session.open(threads=1).prefill_lengths == (4, 16)
        assert session.run(depth=3, prefill=16, decode=4).decode_s > 0
        closed = session.close()
    assert (closed.machine.architecture, closed.machine.cpu) == ("aarch64", "Cortex-A72")


def test_it_computes_the_same(board, tiny_file):
    runner, command, environment = board
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\nfrom flatlm.generative.runner import Runner\n"
        "runner = Runner.open(sys.argv[2], threads=1); runner.prefill(range(20)); print(json.dumps(runner.step(3).tolist()))"
    )
    done = subprocess.run([*command, "-c", code, runner, tiny_file], env=environment, stdout=subprocess.PIPE, check=True, timeout=120)
    with Runner.open(tiny_file, threads=1) as here:
        here.prefill(range(20))
        np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), here.step(3), atol=1e-5)
