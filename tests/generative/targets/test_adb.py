"""The adb target, with Debian's real adb client, against a scripted device end."""

import json
import os
import sys
from pathlib import Path

import pytest

from flatlm.errors import RuntimeFileError, TargetError
from flatlm.generative.benchmarking.record import BenchmarkRecord, Machine, Measure
from flatlm.generative.targets import adb_device
from flatlm.generative.targets.adb import AdbTarget, Runner
from tests.generative.targets import programs
from tests.generative.targets.conftest import adb, measure, wait_for
from tests.generative.toy_model import S


@pytest.fixture
def bundle(tiny_file, tmp_path):
    from flatlm.convert.bundle import BundleMetadata, TokenizerSource, write_bundle

    path = tmp_path / "tiny.litertlm"
    write_bundle(path, model=tiny_file, tokenizer=TokenizerSource("hf", b"{}"), metadata=BundleMetadata(max_num_tokens=S))
    return path


def test_benchmark_model_gives_the_record(phone, request_of, tiny_file):
    seen = []
    record = AdbTarget(f"adb:{phone.serial}").benchmark(request_of, lambda *progress: seen.append(progress))
    assert record.machine == Machine(
        cpu="Acme A9 (Acme Phone 9)",
        architecture=os.uname().machine,
        cores=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=f"Android 15, Linux {os.uname().release}",
        runtime=record.machine.runtime,
    )
    assert record.machine.runtime.startswith("benchmark_model, benchmark_model ")
    assert (record.file, record.file_bytes, record.target) == ("tiny.tflite", tiny_file.stat().st_size, f"adb:{phone.serial}")
    assert (record.threads, record.prefill_tokens, record.decode_tokens, record.weight_cache) == (2, 16, 8, True)
    assert record.prefill_tokens_per_second == Measure(*(pytest.approx(16 / t) for t in (4100e-6, 5000e-6, 4000e-6)), runs=3)
    assert record.decode_tokens_per_second == Measure(*[pytest.approx(1 / 800e-6)] * 3, runs=3)
    assert record.time_to_first_token_s == Measure(*(pytest.approx(t) for t in (4900e-6, 4800e-6, 5800e-6)), runs=3)
    assert record.load_s == Measure(*(pytest.approx(t) for t in (4000e-6, 3000e-6, 4000e-6)), runs=4)
    assert record.peak_rss_bytes == round(25.5 * 2**20)
    assert record.noise == ()
    assert BenchmarkRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert phone.directories() == []
    size = tiny_file.stat().st_size
    assert ("copying tiny.tflite", 0, size) in seen
    assert ("copying tiny.tflite", size, size) in seen
    assert [done for stage, done, _ in seen if stage == "measuring"] == [1, 2, 3, 4]


def test_benchmark_model_is_told_what_to_run(phone, request_of):
    measure(phone, request_of, depths=(4,), weight_cache=False)
    *decodes, prefill = phone.calls()
    assert len(decodes) == 3
    for flag in (
        "--graph=model.tflite",
        "--num_threads=2",
        "--warmup_runs=1",
        "--warmup_min_secs=0.5",
        "--min_secs=0",
        "--use_xnnpack=true",
    ):
        assert flag in prefill
    assert "--signature_to_run_for=prefill_16" in prefill
    assert "--num_runs=3" in prefill
    assert "--signature_to_run_for=decode" in decodes[0]
    assert "--num_runs=8" in decodes[0]
    assert not any("weight_cache" in flag for flag in prefill)


def test_the_flags_suit_the_runtime(phone, request_of, tmp_path, tiny_file):
    """The runtime itself takes the inputs that the flags name, in their order, at every depth."""
    runner = programs.real_benchmark_model(tmp_path)
    record = measure(phone, request_of, runner=runner, prefill=18, decode=2, runs=1, depths=(20, 0))
    assert [item.depth for item in record.depths] == [0, 20]
    assert all(item.prefill_tokens_per_second and item.decode_tokens_per_second for item in record.depths)
    seen = [json.loads(line.removeprefix("positions ")) for line in (phone.tmp / "seen").read_text().splitlines()]
    assert [18] in seen
    assert [38] in seen
    assert list(range(16)) in seen
    assert list(range(20, 36)) in seen


def test_litert_lm_gives_the_record(phone, request_of, bundle, tmp_path):
    (phone.tmp / "lm_flags").write_text("".join(f"--{flag} (words);\n" for flag in programs.LM_FLAGS.split()))
    record = measure(phone, request_of, file=bundle, runner=programs.litert_lm(tmp_path))
    assert record.prefill_tokens_per_second == Measure(pytest.approx(32), pytest.approx(16 / 60.5), pytest.approx(40), 3)
    assert record.decode_tokens_per_second == Measure(pytest.approx(50), pytest.approx(40), pytest.approx(100), 3)
    assert record.time_to_first_token_s == Measure(pytest.approx(0.52), pytest.approx(0.425), pytest.approx(60.51), 3)
    assert record.load_s == Measure(*[pytest.approx(0.51205)] * 3, runs=1)
    assert record.peak_rss_bytes == round(812.5 * 2**20)
    assert [item.depth for item in record.depths] == [0]
    (flags,) = phone.calls()
    assert {"--backend=cpu", "--model_path=model.litertlm", "--benchmark_prefill_tokens=16", "--benchmark_decode_tokens=8"} <= set(flags)
    assert {"--num_iterations=4", "--num_cpu_threads=2", f"--max_num_tokens={S}", "--cache_dir=:memory"} <= set(flags)
    assert phone.directories() == []


def test_an_older_litert_lm_is_run_once_for_each_run(phone, request_of, bundle, tmp_path):
    flags = [flag for flag in programs.LM_FLAGS.split() if flag not in ("num_iterations", "cache_dir")]
    (phone.tmp / "lm_flags").write_text("".join(f"--{flag} (words);\n" for flag in flags))
    record = measure(phone, request_of, file=bundle, runner=programs.litert_lm(tmp_path), weight_cache=False)
    assert len(phone.calls()) == 4
    assert "--disable_cache=true" in phone.calls()[0]
    assert record.weight_cache is False
    assert record.load_s is not None
    assert record.load_s.runs == 3
    with pytest.raises(TargetError, match="empty context: --depths 0"):
        measure(phone, request_of, file=bundle, runner=programs.litert_lm(tmp_path), depths=(0, 4))
    (phone.tmp / "lm_flags").write_text("--benchmark\n--async\n")
    with pytest.raises(TargetError, match="knows no --benchmark_prefill_tokens: take litert_lm_advanced_main"):
        measure(phone, request_of, file=bundle, runner=programs.litert_lm(tmp_path))


def test_a_device_without_the_shell_protocol(connected, request_of):
    """As on Android 6: no exit codes, no end of input; what is left is removed all the same."""
    phone = connected(features="cmd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adb_device, "_CLEAN_S", 1.0)
        assert measure(phone, request_of).decode_tokens_per_second
        assert phone.directories() == []
        phone.set_mood("crash")
        with pytest.raises(TargetError, match="ended with code 1"):
            measure(phone, request_of)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("crash", r"benchmark_model ended with code 1 on .*: ERROR: Failed to allocate tensors!"),
        ("signal", r"benchmark_model was ended by signal 11 on "),
        ("garbage", r"'fast' is not a number: count=5 first=12 avg=fast"),
        ("silent", r"tells no timings; it ends with: INFO: Loaded model"),
    ],
)
def test_a_program_that_fails(phone, request_of, word, message):
    phone.set_mood(word)
    with pytest.raises(TargetError, match=message):
        measure(phone, request_of)
    assert phone.directories() == []


def test_a_file_and_a_program_that_do_not_belong_together(phone, request_of, bundle, tmp_path):
    with pytest.raises(TargetError, match=r"benchmark_model, which reads \.tflite files; tiny\.litertlm is a bundle: take .*docs/devices"):
        measure(phone, request_of, file=bundle)
    other = tmp_path / "hello"
    other.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(TargetError, match=r"--runner hello is not a program that can measure: .* to --help it says: hello"):
        measure(phone, request_of, runner=other)
    other.write_text("#!/nowhere/sh\n")
    with pytest.raises(TargetError, match=r"--runner hello does not run on "):
        measure(phone, request_of, runner=other)
    assert phone.directories() == []


def test_runners_that_cannot_be(phone, request_of, tmp_path):
    with pytest.raises(TargetError, match=r"needs --runner, a program .* for a \.tflite LiteRT's benchmark_model"):
        measure(phone, request_of, runner=None)
    with pytest.raises(TargetError, match=r"absent cannot be read: No such file"):
        measure(phone, request_of, runner=tmp_path / "absent")
    notes = tmp_path / "notes"
    notes.write_text("hello")
    with pytest.raises(TargetError, match=r"notes is not a program \(no ELF, no script\)"):
        measure(phone, request_of, runner=notes)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(Path(sys.executable).resolve().read_bytes()[:18] + (62).to_bytes(2, "little"))
    with pytest.raises(TargetError, match=r"foreign is for x86_64; .* runs arm64-v8a, armeabi-v7a: build it for arm64-v8a"):
        measure(phone, request_of, runner=foreign)
    assert not any("mkdir" in command for command in phone.commands)


def test_libraries_beside_the_program_go_along(tmp_path):
    def elf(name, machine):
        path = tmp_path / name
        path.write_bytes(b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little"))
        return path

    runner, mine, _ = elf("runner", 183), elf("libmine.so", 183), elf("libother.so", 62)
    found = Runner.read(runner, "adb")
    assert (found.processor, found.libraries, found.size) == ("arm64-v8a", (mine,), 40)
    assert Runner.read(programs.benchmark_model(tmp_path), "adb").libraries == ()


def test_too_little_space(phone, request_of):
    phone.script("df", "echo '/dev/block/dm-1 1000000 999999 1 100% /data'")
    with pytest.raises(TargetError, match=r"has 0\.0 MB free in /data/local/tmp; tiny\.tflite and the program need 0\.\d MB: make room"):
        measure(phone, request_of)
    assert not any("mkdir" in command for command in phone.commands)


def test_a_hot_phone_that_saves_its_battery_is_noted(phone, request_of):
    phone.script("dumpsys", "echo 'Thermal Status: 2'")
    phone.script("settings", "echo 1")
    heat, saver = measure(phone, request_of).noise
    assert "thermal status 2" in heat
    assert "battery saver" in saver


def test_a_context_that_is_too_short(phone, request_of):
    with pytest.raises(RuntimeFileError, match=f"need a context of 51 tokens; it has {S}"):
        measure(phone, request_of, depths=(0, 26))
    wrong = {"--runs 0": {"runs": 0}, "--warmup -1": {"warmup": -1}, "no depth": {"depths": ()}, "--depths -1": {"depths": (-1,)}}
    for message, changes in (wrong | {"--prefill 0": {"prefill": 0}, "--decode 0": {"decode": 0}}).items():
        with pytest.raises(RuntimeFileError, match=message):
            measure(phone, request_of, **changes)
    record = measure(phone, request_of, prefill=None, decode=None, threads=None)
    assert (record.prefill_tokens, record.decode_tokens) == (S // 2, S // 2 - 1)
    assert record.threads == min(4, os.cpu_count() or 4)


def test_devices_that_cannot_be_used(connected, request_of):
    with pytest.raises(TargetError, match="adb sees no device: switch on USB debugging"):
        AdbTarget("adb").benchmark(request_of)
    with pytest.raises(TargetError, match=r"adb does not see 127\.0\.0\.1:9: `adb connect 127\.0\.0\.1:9`; it sees: none"):
        AdbTarget("adb:127.0.0.1:9").benchmark(request_of)
    first = connected()
    assert AdbTarget("adb").benchmark(request_of).target == "adb"
    second = connected()
    with pytest.raises(TargetError, match=r"several devices, .*: name one, as in adb:127") as caught:
        AdbTarget("adb").benchmark(request_of)
    assert f"{first.serial} (device)" in str(caught.value)
    assert f"{second.serial} (device)" in str(caught.value)
    with pytest.raises(TargetError, match="adb does not see R5CN: plug it in"):
        AdbTarget("adb:R5CN").benchmark(request_of)
    with pytest.raises(TargetError, match="ssh://x is not a target of adb"):
        AdbTarget("ssh://x")


def test_a_device_that_does_not_trust_this_computer(connected, request_of):
    phone = connected(trusted=False)
    with pytest.raises(TargetError, match=f"{phone.serial} is unauthorized: confirm `Allow USB debugging` on its screen"):
        measure(phone, request_of)


def test_a_device_that_is_offline(connected, request_of):
    phone = connected()
    phone.away = True
    phone.disconnect()
    wait_for(lambda: "offline" in adb("devices"))
    with pytest.raises(TargetError, match=f"{phone.serial} is offline: reconnect its cable, or `adb reconnect`"):
        measure(phone, request_of)


def test_adb_that_is_not_installed(request_of, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    monkeypatch.delenv("ANDROID_SDK_ROOT", raising=False)
    with pytest.raises(TargetError, match="adb is not installed: `apt install adb`"):
        AdbTarget("adb").benchmark(request_of)
