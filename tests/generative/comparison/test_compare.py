import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.record import Machine, Measure
from flatlm.generative.benchmarking.session import Closed, Opened, RunTimes
from flatlm.generative.comparison import compare as module
from flatlm.generative.comparison import processes
from flatlm.generative.comparison.compare import CompareRequest, compare
from flatlm.generative.comparison.subject import Subject, name_subjects
from tests.generative.toy_model import S


@pytest.fixture(autouse=True)
def one_run_a_turn(monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0.0)


def test_a_file_with_itself_and_another(tiny_file, scoring_file, capfd, monkeypatch):
    monkeypatch.setattr(module, "FRESH_S", 0.0)  # fewer processes
    request = CompareRequest(name_subjects([tiny_file, tiny_file, scoring_file]), decode=4, depths=(6, 0), rounds=7, threads=1)
    found = compare(request)
    assert [subject.name for subject in found.subjects] == ["tiny.tflite", "tiny.tflite #2", "scoring.tflite"]
    assert found.threads == 1 and found.decode_tokens == 4
    assert found.prefill_tokens == (S - 6) // 2  # they have no signature in common
    for subject in found.subjects:
        assert subject.file_bytes > 0 and subject.load_s.median > 0 and 10e6 < subject.peak_rss_bytes < 200e6
        assert subject.runtime.startswith("ai-edge-litert ")
        assert [speeds.depth for speeds in subject.depths] == [0, 6]
        for speeds in subject.depths:
            for measure in (speeds.prefill_tokens_per_second, speeds.decode_tokens_per_second, speeds.time_to_first_token_s):
                assert 0 < measure.minimum <= measure.median <= measure.maximum and measure.runs == 7
    assert len(found.ratios) == 2 * 2 * 3
    for item in found.ratios:
        assert item.to == "tiny.tflite" and item.ratio.rounds == 7
        assert 0 < item.ratio.low <= item.ratio.median <= item.ratio.high
    assert found.machine.cores >= 1
    assert found.notes[3].startswith("each subject had one process for all rounds, since")
    assert [note.split(" reads")[0] for note in found.notes[:3]] == ["tiny.tflite", "tiny.tflite #2", "scoring.tflite"]
    assert found.notes[0].endswith("21 tokens by calls of other lengths (1 of 16, 1 of 4, 1 of 1)")
    assert found.notes[2].endswith("21 tokens by calls of other lengths (3 of 8), 3 tokens of padding among them")
    assert capfd.readouterr() == ("", "")
    value = json.loads(json.dumps(found.to_dict()))
    assert value["subjects"][2]["decode_tokens_per_second"] == found.subjects[2].depths[0].decode_tokens_per_second.median
    assert value["subjects"][2]["load_s"] == found.subjects[2].load_s.median
    assert value["subjects"][2]["spread"]["load_s"]["runs"] == 1
    assert value["ratios"][0].keys() == {*("subject", "to", "measure", "depth", "ratio", "low", "high", "rounds", "distinguishable")}


def test_fresh_processes_of_a_real_file(tiny_file):
    found = compare(CompareRequest(name_subjects([tiny_file, tiny_file]), decode=4, rounds=2, threads=1))
    for subject in found.subjects:
        assert subject.load_s.runs == 2 and 0 < subject.load_s.minimum <= subject.load_s.median <= subject.load_s.maximum
    assert found.notes == () and found.ratios[0].ratio.rounds == 2


class Machines:
    """Sessions of known speed on a clock that slows down as it is read: what compare does with their answers."""

    def __init__(self, monkeypatch, speeds):
        self.speeds = speeds
        self.order = []
        self.drift, self.slower = 1.0, 1.05
        self.opened, self.left = [], []
        self.load_s = 1.0
        self.noise = {}
        monkeypatch.setattr(processes, "Session", self.session)
        monkeypatch.setattr(Subject, "transport", lambda subject, **_: "abcdef".index(subject.name))

    def session(self, index):
        machines = self

        class Scripted:
            def __enter__(self):
                return self

            def __exit__(self, *exception):
                machines.left.append(index)

            def open(self, *, threads):
                machines.opened.append(index)
                self.number = machines.opened.count(index)
                return Opened(machines.load_s + 0.01 * self.number, S, 9, threads, ())

            def run(self, *, depth, prefill, decode):
                machines.order.append((depth, index))
                machines.drift *= machines.slower
                seconds = machines.drift / machines.speeds[index](len(machines.order))
                return RunTimes(prefill * seconds, seconds, decode * seconds, None)

            def close(self):
                peak = {1: 5, 2: 7}.get(self.number, 6)
                return Closed(peak, machines.noise.get((index, self.number), ()), Machine("", "", 0, 0, "", f"runtime {index}"))

        return Scripted()


@pytest.fixture
def scripted(monkeypatch, tiny_file):
    def make(*speeds):
        machines = Machines(monkeypatch, [speed if callable(speed) else lambda number, speed=speed: speed for speed in speeds])
        subjects = tuple(Subject(name, tiny_file) for name in "abcdef"[: len(speeds)])
        return machines, CompareRequest(subjects, prefill=4, decode=2, rounds=6, threads=1)

    return make


def test_each_round_has_fresh_processes_which_warm_up_and_have_two_turns(scripted):
    machines, request = scripted(100.0, 200.0, 50.0)
    machines.slower = 1.0
    found = compare(replace(request, depths=(8, 0)))
    rounds = [0, 1, 2, 0, 1, 2, 2, 1, 0, 2, 1, 0, 2, 1, 0, 0, 1, 2] * 3
    assert machines.order == [(depth, index) for depth in (0, 8) for index in rounds]
    assert machines.opened == [0, 1, 2, 2, 1, 0] * 6
    assert machines.left == [2, 1, 0, 0, 1, 2] * 6
    assert found.subjects[0].depths[0].prefill_tokens_per_second.runs == 6
    assert found.subjects[1].load_s == Measure.of([1 + 0.01 * number for number in range(1, 13)])
    assert [subject.peak_rss_bytes for subject in found.subjects] == [7, 7, 7]
    assert [subject.runtime for subject in found.subjects] == ["runtime 0", "runtime 1", "runtime 2"]
    assert found.notes == ()


def test_a_file_that_is_slow_to_load_keeps_its_process(scripted):
    machines, request = scripted(100.0, 200.0)
    machines.load_s = module.FRESH_S
    found = compare(replace(request, depths=(0, 8), rounds=2))
    assert machines.order == [(depth, index) for depth in (0, 8) for index in [0, 1, 0, 1, 1, 0, 1, 0, 0, 1]]
    assert (machines.opened, machines.left) == ([0, 1], [1, 0])
    assert found.subjects[0].load_s == Measure.of([module.FRESH_S + 0.01])
    assert len(found.notes) == 1 and found.notes[0].startswith("each subject had one process for all rounds, since it takes 2 s")


def test_a_context_that_is_slow_to_fill_keeps_its_process(scripted):
    """At 5 tokens a second the context of 8 takes 1.6 s more than the 1 s of loading; only there are processes kept."""
    machines, request = scripted(100.0, 5.0)
    machines.slower = 1.0
    found = compare(replace(request, depths=(0, 8), rounds=1))
    assert machines.opened == [0, 1, 0, 1]
    (note,) = found.notes
    assert "for all rounds at depth 8, since" in note
    machines.opened.clear()
    machines.load_s = 0.3
    assert compare(replace(request, depths=(0, 8), rounds=1)).notes == ()


def test_what_each_process_saw_is_told_once(scripted):
    machines, request = scripted(100.0, 200.0)
    machines.slower = 1.0
    machines.noise = {
        (1, 2): ("others took 1,012% of a core", "it is hot"),
        (1, 3): ("others took 7% of a core",),
        (1, 4): ("others took 8%",),
    }
    assert compare(request).noise == (
        "while b ran, others took 1,012% of a core (2 of its 6 processes; the worst); it is hot (1 of its 6 processes; the worst); "
        "others took 8% (1 of its 6 processes; the worst)",
    )
    machines.load_s, machines.noise = 9.0, {(0, 1): ("it is hot",)}
    machines.opened.clear()
    assert compare(request).noise == ("while a ran, it is hot",)


def test_a_drift_cancels(scripted):
    """The machine loses 5 % with every run."""
    _, request = scripted(100.0, 200.0)
    found = compare(request)
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        assert found.ratio("b", name, 0).median == pytest.approx(2.0, rel=0.002)
        assert found.ratio("b", name, 0).half_width < 0.003
    assert found.ratio("b", "time_to_first_token_s", 0).median == pytest.approx(0.5, rel=0.002)
    assert found.ratio("a", "prefill_tokens_per_second", 0) is None
    first = found.subjects[0].depths[0].prefill_tokens_per_second
    assert first.maximum / first.minimum > 1.5


def test_rounds_that_differ_are_told(scripted):
    """Every round of b has another speed; the ratio's interval shows it, and so does a clause."""
    machines, request = scripted(100.0, lambda number: 200.0 + 20 * (number // 6))
    machines.slower = 1.0
    assert compare(replace(request, rounds=3)).noise == ()
    (clause,) = compare(request).noise
    assert clause.startswith("the rounds were unsteady: the middle half of 6 times of b's prefill spans 1")
    machines.order.clear()
    (clause,) = compare(replace(request, depths=(0, 8))).noise
    assert " of b's prefill at depth 0 spans " in clause


def test_speeds_and_times(scripted):
    """Each token takes a hundredth of a second, later a little more, whatever reads it."""
    _, request = scripted(100.0, 100.0)
    speeds = compare(request).subjects[0].depths[0]
    mean = (1.05**3 + 1.05**6) / 2  # of the first round's two turns, after two that warm up
    assert speeds.prefill_tokens_per_second.maximum == pytest.approx(100 / mean)
    assert speeds.decode_tokens_per_second == speeds.prefill_tokens_per_second
    assert speeds.time_to_first_token_s.minimum == pytest.approx((request.prefill + 1) * 0.01 * mean)


def test_until_the_intervals_are_narrow(scripted):
    machines, request = scripted(100.0, lambda number: 200.0 if number > 60 else 200.0 + 40 * (number // 6 % 3))
    found = compare(replace(request, until=0.01))
    rounds = found.ratios[0].ratio.rounds
    assert 6 < rounds < 30 and len(machines.order) == 6 * rounds
    assert all(item.ratio.half_width <= 0.01 for item in found.ratios)
    machines.order.clear()
    assert compare(replace(request, until=0.0001)).ratios[0].ratio.rounds == 30
    assert compare(replace(request, until=0.5)).ratios[0].ratio.rounds == 6


def test_a_short_run_is_repeated_in_its_turn(scripted, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 2.5)
    machines, request = scripted(7.0, 7.0)
    monkeypatch.setattr(machines, "drift", 1.0)
    compare(replace(request, rounds=1))
    assert machines.order[:3] == [(0, 0)] * 3 and machines.order[3] == (0, 1)


def test_the_default_prompt_is_what_all_files_read_at_once(tiny_file, scripted):
    _, request = scripted(1.0, 2.0)
    found = compare(replace(request, prefill=None, decode=None))
    assert (found.prefill_tokens, found.decode_tokens, found.notes) == (16, S - 17, ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill": S}, rf"tiny\.tflite: a depth of 0, --prefill {S} and --decode 1 need a context of {S + 2} tokens; it has {S}"),
        ({"depths": (0, S)}, f"a depth of {S}, --prefill 1 and --decode 1"),
        ({"prefill": 0}, "--prefill 0 is not possible"),
        ({"decode": -2}, "--decode -2"),
        ({"rounds": 0}, "--rounds 0"),
        ({"threads": 0}, "--threads 0"),
        ({"depths": (-1,)}, "--depths -1"),
        ({"until": 1.5}, "--until 150"),
    ],
)
def test_impossible_requests(tiny_file, options, message):
    with pytest.raises(RuntimeFileError, match=message):
        compare(CompareRequest(name_subjects([tiny_file, tiny_file]), **options))


def test_one_subject_is_no_comparison(tiny_file):
    with pytest.raises(RuntimeFileError, match="two subjects or more"):
        compare(CompareRequest(name_subjects([tiny_file])))


def test_too_little_memory_is_told_before_anything_starts(tiny_file, monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    monkeypatch.setattr(processes, "Session", None)
    with pytest.raises(RuntimeFileError, match=r"at least \d+ MB \(tiny\.tflite \d+ MB, tiny\.tflite #2 \d+ MB\), of which 0 MB"):
        compare(CompareRequest(name_subjects([tiny_file, tiny_file])))


def test_a_file_that_cannot_be_loaded_ends_all(tiny_file, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    with pytest.raises(RuntimeFileError, match=r"broken\.gguf (needs llama-cpp-python|cannot be loaded by llama\.cpp)"):
        compare(CompareRequest(name_subjects([tiny_file, broken])))
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(broken) not in listed and "llama_cpp_worker.py" not in listed


def test_imports_neither_torch_nor_the_runtime():
    code = "import sys, flatlm.generative.comparison.compare; assert not {'torch', 'ai_edge_litert', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
