import json
from collections import Counter

import pytest

from flatlm.errors import RuntimeFileError, TargetError
from flatlm.generative.benchmarking import measure as module
from flatlm.generative.benchmarking.measure import measure
from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest, Machine, Measure
from flatlm.generative.benchmarking.session import Closed, Opened, RunTimes, local_transport
from flatlm.generative.targets.local import LocalTarget
from flatlm.generative.targets.open import open_target
from tests.generative.toy_model import S


@pytest.fixture(autouse=True)
def no_more_runs_than_asked(monkeypatch):
    monkeypatch.setattr(module, "MEASURED_S", 0.0)


def test_a_real_file(tiny_file, capfd):
    seen = []
    request = BenchmarkRequest(tiny_file, prefill=16, decode=8, depths=(20, 0), runs=3, threads=1)
    record = LocalTarget().benchmark(request, lambda *step: seen.append(step))
    assert (record.file, record.file_bytes, record.target) == ("tiny.tflite", tiny_file.stat().st_size, "local")
    assert (record.prefill_tokens, record.decode_tokens, record.threads, record.weight_cache) == (16, 8, 1, True)
    assert [speeds.depth for speeds in record.depths] == [0, 20]
    measures = [getattr(speeds, name) for speeds in record.depths for name in ("prefill_tokens_per_second", "decode_tokens_per_second")]
    for measured in (*measures, record.time_to_first_token_s, record.load_s):
        assert 0 < measured.minimum <= measured.median <= measured.maximum
        assert measured.runs == 3
    # This process has torch in it, and more memory than that.
    assert 10e6 < record.peak_rss_bytes < 200e6
    assert record.machine.cores >= 1
    assert BenchmarkRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert seen == [("benchmark", done, 9) for done in range(1, 10)]
    assert capfd.readouterr() == ("", "")


def test_defaults_fit_a_small_cache(tiny_file):
    record = LocalTarget().benchmark(BenchmarkRequest(tiny_file, depths=(8,), runs=1))
    assert record.prefill_tokens == (S - 8) // 2
    assert 8 + record.prefill_tokens + 1 + record.decode_tokens == S
    assert record.time_to_first_token_s is None, "it is that of an empty context"


class Answers:
    """A session whose runs take ever longer, by depth."""

    opened: list[dict[str, object]]
    load_s = (3.0, 1.0, 2.0)
    energy_j: float | None = 8.0

    def __init__(self, transport):
        self.runs = Counter[int]()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def open(self, **options):
        Answers.opened.append(options)
        return Opened(self.load_s[len(Answers.opened) - 1], 1000, 10, 2, (4,))

    def run(self, *, depth, prefill, decode):
        self.runs[depth] += 1
        time = self.runs[depth] * 0.25 * (1 + depth)
        return RunTimes(time, 1.0, 2 * time, self.energy_j)

    def close(self):
        return Closed(77, ("a fan was loud",), Machine("", "", 1, 1, "", ""))


@pytest.fixture
def answers(monkeypatch):
    Answers.opened = []
    monkeypatch.setattr(module, "Session", Answers)
    monkeypatch.setattr(Answers, "load_s", (3.0, 1.0, 2.0))
    return Answers


def test_rates_and_times(tiny_file, answers):
    """Of the runs after the warm-up; first token after prompt and step; medians of loads in processes of their own."""
    request = BenchmarkRequest(tiny_file, prefill=8, decode=4, depths=(0, 1), runs=2, warmup=1, threads=2, weight_cache=False)
    record = measure(local_transport(tiny_file), request, "there", None)
    speeds = record.depths
    assert speeds[0].prefill_tokens_per_second == Measure.of([8 / 0.5, 8 / 0.75])
    assert speeds[0].decode_tokens_per_second == Measure.of([4 / 1.0, 4 / 1.5])
    assert speeds[1].prefill_tokens_per_second == Measure.of([8 / 1.0, 8 / 1.5])
    assert record.time_to_first_token_s == Measure.of([1.5, 1.75])
    assert record.energy_j_per_token == Measure.of([2.0, 2.0])
    assert record.load_s == Measure(2.0, 1.0, 3.0, 3)
    assert answers.opened == [{"threads": 2, "weight_cache": False}] * 3
    assert (record.target, record.peak_rss_bytes, record.noise) == ("there", 77, ("a fan was loud",))


def test_warm_up_takes_time(tiny_file, answers, monkeypatch):
    monkeypatch.setattr(module, "WARM_S", 6.0)
    request = BenchmarkRequest(tiny_file, prefill=8, decode=4, runs=1)
    # 1.75 s, 2.5 s and 3.25 s of warm-up; the run that counts is the fourth, with a prompt of 1 s.
    assert measure(local_transport(tiny_file), request, "", None).prefill_tokens_per_second.median == 8
    none = BenchmarkRequest(tiny_file, prefill=8, decode=4, runs=1, warmup=0)
    answers.opened.clear()
    assert measure(local_transport(tiny_file), none, "", None).prefill_tokens_per_second.median == 32


def test_short_runs_are_repeated_for_a_while(tiny_file, answers, monkeypatch):
    """Runs take 1.75 s, 2.5 s, 3.25 s, 4 s."""
    request = BenchmarkRequest(tiny_file, prefill=8, decode=4, runs=2, warmup=0)
    steps = []
    for least, limit, runs in ((4.0, 9, 2), (7.5, 9, 3), (7.6, 9, 4), (99.0, 3, 3), (99.0, 1, 2)):
        monkeypatch.setattr(module, "MEASURED_S", least)
        monkeypatch.setattr(module, "MOST_RUNS", limit)
        answers.opened.clear()
        record = measure(local_transport(tiny_file), request, "", lambda *step: steps.append(step))
        assert record.prefill_tokens_per_second == Measure.of([8 / (0.25 * number) for number in range(1, runs + 1)])
        assert record.decode_tokens_per_second.runs == record.time_to_first_token_s.runs == record.energy_j_per_token.runs == runs
    assert steps == [("benchmark", done, 5) for done in range(1, 6)] * 5


def test_runs_that_differ_are_told(tiny_file, answers):
    """Times of 1 to 5 quarters of a second: the middle half is 2, the median 3."""
    request = BenchmarkRequest(tiny_file, prefill=8, decode=4, depths=(0, 1), runs=5, warmup=0)
    clause = "the runs were unsteady: the middle half of 5 times of prefill at depth 0 spans 67% of their median"
    assert measure(local_transport(tiny_file), request, "", None).noise == ("a fan was loud", clause)
    answers.opened.clear()
    few = BenchmarkRequest(tiny_file, prefill=8, decode=4, runs=4, warmup=0)
    assert measure(local_transport(tiny_file), few, "", None).noise == ("a fan was loud",)


def test_prefill_and_decode_are_told_apart():
    runs = [RunTimes(1.0, 2.0, 3.0, None), RunTimes(4.0, 5.0, 6.0, None)]
    assert module._series({0: runs}) == {"prefill": [1.0, 4.0], "decode": [3.0, 6.0]}
    assert list(module._series({0: runs, 8: runs})) == [
        "prefill at depth 0",
        "decode at depth 0",
        "prefill at depth 8",
        "decode at depth 8",
    ]


def test_a_slow_file_is_loaded_once(tiny_file, answers, monkeypatch):
    monkeypatch.setattr(answers, "load_s", (11.0,))
    assert measure(local_transport(tiny_file), BenchmarkRequest(tiny_file), "", None).load_s == Measure(11.0, 11.0, 11.0, 1)


def test_energy_is_unknown_where_one_run_has_none(tiny_file, answers, monkeypatch):
    monkeypatch.setattr(answers, "energy_j", None)
    assert measure(local_transport(tiny_file), BenchmarkRequest(tiny_file), "", None).energy_j_per_token is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill": S}, f"tiny.tflite: --prefill {S} and --decode"),
        ({"prefill": 8, "decode": S - 8}, f"need a context of {S + 1} tokens; it has {S}"),
        ({"prefill": 8, "decode": 8, "depths": (0, S - 16)}, f"tiny.tflite: --depths {S - 16}, --prefill 8 and --decode 8 need"),
        ({"depths": (S,)}, f"--depths {S}, --prefill 1 and --decode 1 need a context of {S + 3}"),
        ({"prefill": 0}, "--prefill 0"),
        ({"decode": -1}, "--decode -1"),
        ({"runs": 0}, "--runs 0"),
        ({"warmup": -1}, "--warmup -1 is not possible: it is 0 or more"),
        ({"depths": (0, -1)}, "--depths -1"),
        ({"depths": ()}, "no depth"),
        ({"threads": 0}, "--threads 0 is not possible"),
    ],
)
def test_impossible_requests(tiny_file, options, message):
    with pytest.raises(RuntimeFileError, match=message):
        LocalTarget().benchmark(BenchmarkRequest(tiny_file, **options))


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "no.tflite"
    with pytest.raises(RuntimeFileError, match=r"no\.tflite cannot be read"):
        LocalTarget().benchmark(BenchmarkRequest(path))
    path.write_bytes(b"no model at all")
    with pytest.raises(RuntimeFileError, match=r"no\.tflite is not a TFLite model"):
        LocalTarget().benchmark(BenchmarkRequest(path))


def test_a_runner_is_for_phones(tiny_file):
    with pytest.raises(TargetError, match="local is measured with FlatLM's own runner: --runner x is for adb"):
        LocalTarget().benchmark(BenchmarkRequest(tiny_file, runner="x"))


@pytest.mark.parametrize("name", ["", "locally", "local:1", "pi", "adb:", "http://pi", "/dev/null"])
def test_there_is_no_such_target(name):
    with pytest.raises(TargetError, match=r"there is no target '.*': give one of local, ssh://\[user@\]host\[:port\], adb\[:SERIAL\]"):
        open_target(name)


def test_local():
    assert isinstance(open_target("local"), LocalTarget)
