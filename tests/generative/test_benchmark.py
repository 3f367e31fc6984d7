import json
import signal
import subprocess
import sys

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative import benchmark as module
from flatlm.generative.benchmark import Measure, benchmark
from tests.generative.toy_model import S


def test_measures_in_a_process_of_its_own(tiny_file, capfd):
    report = benchmark(tiny_file, prefill=20, decode=10, runs=3, threads=1)
    assert (report.prefill_tokens, report.decode_tokens, report.threads) == (20, 10, 1)
    for measure in (report.prefill_tokens_per_second, report.decode_tokens_per_second, report.time_to_first_token_s):
        assert 0 < measure.minimum <= measure.median <= measure.maximum
        assert measure.runs == 3
    assert 0 < report.load_s < 60
    # This process has torch in it, and more memory than that.
    assert 10e6 < report.peak_rss_bytes < 200e6
    assert capfd.readouterr() == ("", "")


def test_as_json(tiny_file):
    found = json.loads(json.dumps(benchmark(tiny_file, runs=1).to_dict()))
    assert found["file"] == str(tiny_file)
    keys = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "load_s", "peak_rss_bytes")
    assert all(found[key] > 0 for key in keys)
    spread = found["spread"]["decode_tokens_per_second"]
    assert spread == {"median": found["decode_tokens_per_second"], "minimum": spread["minimum"], "maximum": spread["maximum"], "runs": 1}


def test_defaults_fit_a_small_cache(tiny_file):
    report = benchmark(tiny_file, runs=1)
    assert report.prefill_tokens == S // 2
    assert report.prefill_tokens + 1 + report.decode_tokens == S


def test_median_of_runs():
    assert Measure.of([3.0, 1.0, 9.0, 2.0]) == Measure(2.5, 1.0, 9.0, 4)


def test_rates_and_times(monkeypatch):
    """Of the runs after the warm-up: prefill tokens by its time; first token after both; the other steps by theirs."""

    class Slow:
        cache_length, vocab_size, threads = 100, 10, 2
        now, runs = 0.0, 0

        def reset(self):
            Slow.runs += 1

        def prefill(self, ids):
            Slow.now += len(ids) * 0.5 * (1000 if Slow.runs == 1 else 1)

        def step(self, token):
            Slow.now += 2.0

    monkeypatch.setattr(module.Runner, "open", lambda *args, **kwargs: Slow())
    monkeypatch.setattr(module.time, "perf_counter", lambda: Slow.now)
    report = module._measure("x.tflite", prefill=8, decode=4, runs=2, threads=None)
    assert Slow.runs == 3
    assert report.prefill_tokens_per_second == Measure(2.0, 2.0, 2.0, 2)
    assert report.decode_tokens_per_second == Measure(0.5, 0.5, 0.5, 2)
    assert report.time_to_first_token_s == Measure(6.0, 6.0, 6.0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill": S}, f"tiny.tflite: --prefill {S} and --decode"),
        ({"prefill": 8, "decode": S - 8}, f"need a context of {S + 1} tokens; it has {S}"),
        ({"prefill": 0}, "--prefill 0"),
        ({"decode": -1}, "--decode -1"),
        ({"runs": 0}, "--runs 0"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_impossible_requests(tiny_file, options, message):
    with pytest.raises(RuntimeFileError, match=message):
        benchmark(tiny_file, **options)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "no.tflite"
    path.write_bytes(b"no model at all")
    with pytest.raises(RuntimeFileError, match=r"no\.tflite is not a TFLite model"):
        benchmark(path)


def test_a_killed_process_is_told(tiny_file, monkeypatch):
    killed = subprocess.run(
        [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"], capture_output=True, text=True, check=False
    )
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(
        RuntimeFileError, match=r"tiny\.tflite: the process that measures it was ended by SIGKILL, perhaps for want of memory"
    ):
        benchmark(tiny_file)
