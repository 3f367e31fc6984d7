"""The search: which candidates it asks for, what it chooses, and one real run whose files are exported and measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flatlm.commands.tune import _bytes
from flatlm.convert.worker import CompilerProcess
from flatlm.errors import ExportError, OutputError, RecipeError, TextError
from flatlm.generative import tune as module
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.generative.reporting.front_plot import plot_front
from flatlm.generative.tune import Budget, Candidate, _Search, tune
from flatlm.quantize.knapsack import Option
from flatlm.utilities.exporter import ExportRequest
from flatlm.utilities.recipe_file import read_recipe

ASSETS = Path(__file__).resolve().parents[2] / "flatlm" / "assets"
DEMO, TEXT = ASSETS / "demo_model", ASSETS / "demo_text" / "held_out.json"
OVERHEAD = 70
PLAN = SimpleNamespace(weights=SimpleNamespace(weights={}))


class FakeJudge:
    """Files as large as their weights and OVERHEAD, whose KL is `ratio` times what was predicted."""

    def __init__(self, ratio: float = 1.0) -> None:
        self.ratio, self.candidates = ratio, []

    def measure(self, recipe, weight_bytes, predicted):
        for known in self.candidates:
            if known.recipe.rules == recipe.rules:
                return known
        candidate = Candidate(recipe, weight_bytes + OVERHEAD, weight_bytes, predicted, predicted * self.ratio, 1.0, 1.0)
        self.candidates.append(candidate)
        return candidate


OPTIONS = {
    f"unit{i}": {
        "dynamic_int8": Option("dynamic_int8", 80, 0.001 * (i + 1)),
        "dynamic_int4_block32": Option("dynamic_int4_block32", 45, 0.01 * (i + 1)),
        "dynamic_int4_channel": Option("dynamic_int4_channel", 42, 0.015 * (i + 1) ** 1.5),
    }
    for i in range(6)
}


def search(budget: Budget, ratio: float = 1.0) -> tuple[Candidate, FakeJudge]:
    judge = FakeJudge(ratio)
    return _Search(None, budget, PLAN, OPTIONS, judge).run(), judge


@pytest.mark.parametrize("size", [330, 360, 400, 470, 560])
def test_a_size_is_kept_to_by_the_file_itself(size):
    best, judge = search(Budget(max_size=size))
    assert best.file_bytes <= size
    assert all(best.mean_kl <= other.mean_kl for other in judge.candidates if other.file_bytes <= size)
    everything = search(Budget(max_size=10**9))[1].candidates
    assert everything[0].mean_kl == pytest.approx(0.021), "all int8 where there is room for it"


def test_a_size_that_the_rest_of_the_file_exceeds_is_an_error():
    with pytest.raises(ExportError, match="cannot be kept: the smallest file has"):
        search(Budget(max_size=6 * 42 + OVERHEAD - 1))


@pytest.mark.parametrize(
    ("bound", "ratio"), [(0.03, 0.2), (0.1, 0.2), (0.2, 0.2), (0.03, 1.0), (0.1, 1.0), (0.2, 1.0), (0.1, 3.0), (0.2, 3.0)]
)
def test_a_kl_is_kept_to_by_a_small_file(bound, ratio):
    best, judge = search(Budget(max_kl=bound), ratio)
    assert best.mean_kl <= bound
    assert len(judge.candidates) <= module.MOST_TRIES + 3
    choices = _Search(None, Budget(bits=1), PLAN, OPTIONS, None).front
    smallest = min(choice.size for choice in choices if choice.cost * ratio <= bound)
    assert best.weight_bytes <= smallest + 40, "within one unit's choice of the smallest there is"


def test_a_kl_below_the_best_is_an_error():
    with pytest.raises(ExportError, match=r"cannot be kept: the nearest file has a KL of 0\.021"):
        search(Budget(max_kl=0.02))


def test_a_uniform_recipe_that_measures_better_is_chosen():
    class Contrary(FakeJudge):
        def measure(self, recipe, weight_bytes, predicted):
            uniform = len({rule.scheme_name for rule in recipe.rules[:-1]}) == 1
            self.ratio = 0.001 if uniform else 1.0
            return super().measure(recipe, weight_bytes, predicted)

    best = _Search(None, Budget(max_size=400), PLAN, OPTIONS, Contrary()).run()
    assert {rule.scheme_name for rule in best.recipe.rules[:-1]} == {"dynamic_int4_block32"}


REFUSED = {
    "no text": ({"calibration": None}, Budget(bits=5), RecipeError, "needs calibration text"),
    "too few bits": ({}, Budget(bits=3), ExportError, r"3 bits a weight, cannot be kept: .* 4\.\d\d bits each"),
    "too small": ({}, Budget(max_size=1000), ExportError, "the weights alone take"),
    "another suffix": ({"output": Path("out.bin")}, Budget(bits=5), OutputError, "the suffix says the format"),
    "no folder": ({"output": Path("nowhere") / "out.tflite"}, Budget(bits=5), OutputError, "nowhere is not a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_before_any_work(case, tmp_path, monkeypatch):
    changed, budget, kind, words = REFUSED[case]
    monkeypatch.setattr(module, "_sensitivities", lambda *_: pytest.fail("work was begun"))
    request = ExportRequest(DEMO, tmp_path / changed.get("output", "out.tflite"), calibration=changed.get("calibration", TEXT))
    with pytest.raises(kind, match=words):
        tune(request, budget)
    assert list(tmp_path.iterdir()) == []


def test_one_short_text_cannot_be_split(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("word")
    with pytest.raises(TextError, match="too short to calibrate on one part"):
        tune(ExportRequest(DEMO, tmp_path / "out.tflite", calibration=text), Budget(bits=5))


@pytest.mark.parametrize(("text", "count"), [("700MB", 700_000_000), ("1.5 GiB", 1610612736), ("12", 12), (" 3kb ", 3000)])
def test_sizes_are_read(text, count):
    assert _bytes(text) == count


@pytest.mark.slow
def test_a_real_search_measures_files_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SENSITIVITY_TOKENS", 600)
    monkeypatch.setattr(module, "JUDGED_TOKENS", 150)
    monkeypatch.setattr("flatlm.utilities.calibration.text.MOST_TOKENS", 1024)
    request = ExportRequest(DEMO, tmp_path / "out.tflite", prefill_lengths=(16,), kv_cache_len=128, calibration=TEXT)
    schemes = ("dynamic_int8", "dynamic_int4_channel")
    stages: list[str] = []

    def interrupt(stage, done, total):
        stages.append(stage)
        if stage == "candidates":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(request, Budget(bits=6), schemes=schemes, progress=interrupt)
    assert not request.output.exists() and {"sensitivity", "calibrate", "evaluate"} <= set(stages)
    kept = json.loads((tmp_path / "out.tune" / "candidates.json").read_text())["files"]
    assert len(kept) == 1

    exported = []
    real = module.export
    monkeypatch.setattr(module, "export", lambda asked, **more: exported.append(asked.output) or real(asked, **more))
    compiled = []
    submit = CompilerProcess.submit
    monkeypatch.setattr(CompilerProcess, "submit", lambda self, *job: compiled.append(job) or submit(self, *job))
    monkeypatch.setattr(module.Sensitivity, "_inside", lambda *_: pytest.fail("measured again"))
    report = tune(request, Budget(bits=6), schemes=schemes)
    assert len(exported) == len(report.candidates), "the first candidate is not exported again, the chosen one is"
    assert len(exported) > len(compiled) == 2, "once for all candidates, which give logits of prefill, and once for the chosen file"
    assert request.output.stat().st_size == report.export.bytes
    assert read_recipe(report.recipe_file) == report.best.recipe
    weights = 8 * report.best.weight_bytes / 1_312_768
    assert 4 < weights <= 6
    judged = json.loads(TEXT.read_text())
    measured = evaluate(EvaluationRequest(request.output, judged[-20:], DEMO, max_tokens=150, reference_top=0)).divergence
    assert measured.mean_kl is not None and measured.mean_kl < 0.1
    picture = tmp_path / "front.svg"
    plot_front(picture, report.front, report.candidates, report.best)
    assert (b"<svg" in picture.read_bytes() and b"chosen" in picture.read_bytes()) or picture.stat().st_size > 5000
