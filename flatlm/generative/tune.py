"""The search for a recipe under a budget: sensitivities once, a knapsack, and candidates judged as exported files in the runtime."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flatlm.convert.atomic_file import atomic_output
from flatlm.convert.worker import CachingCompiler
from flatlm.errors import ExportError, OutputError, TextError
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.layers.config import ModelConfig
from flatlm.progress import Progress
from flatlm.quantize.knapsack import Choice, Option, front, within
from flatlm.quantize.recipes import Recipe, get_recipe
from flatlm.quantize.schemes import get_scheme
from flatlm.utilities.calibration.text import CalibrationText, no_text, read_text
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.digests import digest_of
from flatlm.utilities.documents import read_documents
from flatlm.utilities.exporter import ExportPlan, ExportReport, ExportRequest, Prove, export, plan_export, require_suffix
from flatlm.utilities.recipe_file import write_recipe
from flatlm.utilities.results import result_path
from flatlm.utilities.tuning.keyed_file import KeyedFile
from flatlm.utilities.tuning.sensitivity import Costs, Sensitivity
from flatlm.utilities.tuning.units import SEARCHED, matrix_parameters, possible, recipe_of, size, stored_bytes, units

SENSITIVITY_TOKENS = 2048
JUDGED_TOKENS = 2000
JUDGED_SHARE = 0.25
"""Of the text: kept out of the calibration, for judging candidates."""
MOST_TRIES = 6


@dataclass(frozen=True)
class Budget:
    """What the recipe must keep to; exactly one is given. Bytes of the file, KL of the file in nats, or bits a weight with its scales."""

    max_size: int | None = None
    max_kl: float | None = None
    bits: float | None = None

    def __str__(self) -> str:
        if self.max_size is not None:
            return f"at most {self.max_size / 1e6:.2f} MB"
        return f"KL at most {self.max_kl:g}" if self.max_kl is not None else f"{self.bits:g} bits a weight"


@dataclass(frozen=True)
class Candidate:
    """A recipe, and its exported file on text that it was not calibrated on."""

    recipe: Recipe
    file_bytes: int
    weight_bytes: int
    predicted_kl: float | None
    mean_kl: float
    perplexity: float
    top1_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the recipe's name and summary for the recipe."""
        return asdict(replace(self, recipe=get_recipe("none"))) | {"recipe": self.recipe.name, "summary": self.recipe.summary}


@dataclass(frozen=True)
class TuneReport:
    """What was found: the export of the best candidate, all that were judged, and the front they were chosen from."""

    best: Candidate
    recipe_file: Path
    candidates: tuple[Candidate, ...]
    front: tuple[Choice, ...]
    export: ExportReport


def tune(
    request: ExportRequest,
    budget: Budget,
    *,
    work: Path | None = None,
    schemes: Sequence[str] = SEARCHED,
    prove: Prove | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Find the recipe with the least KL under a budget (or the smallest under a KL), write it to `work`/recipe.json, and export it.

    `request` has the calibration text; its recipe is not looked at. `work` (OUT.tune by default) keeps what is measured: started again with
    the same checkpoint, text and schemes, a search goes on where it was. Raises a FlatlmError where the budget cannot be kept.
    """
    if request.calibration is None:
        raise no_text("a search")
    require_suffix(request.output)
    learned, judged = _split(read_documents(request.calibration))
    work = work or request.output.with_name(f"{request.output.stem}.tune")
    text_file = work / "calibration.json"
    request = replace(request, calibration=text_file, recipe=get_recipe("calibrated_int4_channel"))
    with open_checkpoint(request.checkpoint, lora=request.lora) as checkpoint:
        plan = plan_export(checkpoint, replace(request, recipe=get_recipe("none")))
        _require_possible(plan, budget, schemes)
        if not work.parent.is_dir():
            raise OutputError(f"{work.parent} is not a directory: make it, or choose another output")
        work.mkdir(exist_ok=True)
        _write_json(text_file, learned)
        text = read_text(
            text_file,
            request.checkpoint,
            vocab_size=plan.config.vocab_size,
            max_positions=plan.config.max_positions,
            most=SENSITIVITY_TOKENS,
        )
        key = {"checkpoint": checkpoint.fingerprint(), "text": digest_of(learned), "tokens": text.count(), "schemes": list(schemes)}
        costs = _sensitivities(plan, text, schemes, KeyedFile(work / "sensitivity.json", key, "kl"), progress)
    search = _Search(request, budget, plan, _options(plan, costs), _Judged(work, request, judged, key, plan.shape.context // 2, progress))
    best = search.run()
    recipe_file = work / "recipe.json"
    write_recipe(recipe_file, best.recipe)
    report = export(replace(request, recipe=best.recipe), prove=prove, progress=progress, compiler=search.judge.compiler)
    return TuneReport(best, recipe_file, tuple(search.judge.candidates), tuple(search.front), report)


def _require_possible(plan: ExportPlan, budget: Budget, schemes: Sequence[str]) -> None:
    """ExportError where even the smallest choice is beyond the budget, or the model is no decoder; before anything is measured."""
    if not isinstance(plan.config, ModelConfig):
        raise ExportError(f"a search tries the blocks of a decoder of FlatLM's own, which {plan.family} is not: export it by a recipe")
    if plan.config.fills_blanks:
        raise ExportError("a search judges files by the text that they write on with, and this model fills blanks: export it by a recipe")
    sources = plan.weights.weights
    least = _outside_units(plan) + sum(
        min(size(unit, scheme, sources) for scheme in possible(unit, schemes, sources)) for unit in units(plan.config)
    )
    most = budget.max_size if budget.bits is None else int(budget.bits * matrix_parameters(sources) / 8)
    if most is not None and most < least:
        bits = 8 * least / matrix_parameters(sources)
        raise ExportError(f"the budget, {budget}, cannot be kept: the weights alone take {least / 1e6:.3f} MB, {bits:.2f} bits each")


def _outside_units(plan: ExportPlan) -> int:
    """Bytes of the matrices that no unit has: routers, tables of positions."""
    inside = {weight for unit in units(plan.config) for weight in unit.weights}
    rest = [source.shape for name, source in plan.weights.weights.items() if name not in inside and len(source.shape) == 2]
    return sum(stored_bytes(get_scheme("dynamic_int8"), shape) for shape in rest)


def _sensitivities(plan: ExportPlan, text: CalibrationText, schemes: Sequence[str], file: KeyedFile, progress: Progress | None) -> Costs:
    return Sensitivity(plan.config, plan.weights.weights, text, schemes, file, progress).measure()


def _options(plan: ExportPlan, costs: Costs) -> dict[str, dict[str, Option]]:
    """By a unit's pattern and a scheme."""
    sources = plan.weights.weights
    return {
        unit.pattern: {scheme: Option(scheme, size(unit, scheme, sources), kl) for scheme, kl in costs[unit.pattern].items()}
        for unit in units(plan.config)
    }


class _Judged:
    """Exports candidates and measures their files; what was measured is kept in `work`/candidates.json, by recipe."""

    def __init__(
        self,
        work: Path,
        request: ExportRequest,
        documents: Sequence[str],
        key: Mapping[str, object],
        stride: int,
        progress: Progress | None,
    ) -> None:
        self.request, self.documents, self.stride, self.progress = request, documents, stride, progress
        self.file = work / f"candidate{request.output.suffix}"
        cache = [request.kv_cache_len, str(request.kv_cache_dtype)]
        signatures = [request.prefill_lengths, *cache, request.output.suffix, str(request.reading), str(request.lora)]
        self.kept = KeyedFile(work / "candidates.json", {**key, "judged": digest_of(documents), "signatures": signatures}, "files")
        self.compiler = CachingCompiler()  # all candidates have one graph
        self.candidates: list[Candidate] = []

    def measure(self, recipe: Recipe, weight_bytes: int, predicted: float | None) -> Candidate:
        """Export and evaluate, unless that was done before."""
        for candidate in self.candidates:
            if candidate.recipe.rules == recipe.rules:
                return candidate
        name = digest_of([[rule.pattern, rule.scheme_name] for rule in recipe.rules])
        if name not in self.kept.values:
            asked = replace(self.request, recipe=recipe, output=self.file, prefill_logits=True)
            export(asked, progress=self.progress, compiler=self.compiler)
            judged = EvaluationRequest(
                self.file,
                self.documents,
                self.request.checkpoint,
                self.request.lora,
                tokenizer=self.request.checkpoint,
                stride=self.stride,
                max_tokens=JUDGED_TOKENS,
                greedy_prompts=0,
                reference_top=0,  # every candidate is compared with the whole distributions
            )
            report = evaluate(judged, progress=self.progress)
            assert report.divergence is not None
            measured = {
                "file_bytes": self.file.stat().st_size,
                "mean_kl": report.divergence.mean_kl,
                "perplexity": report.perplexity,
                "top1_agreement": report.divergence.top1_agreement,
            }
            self.kept.add({name: measured})
            for leftover in (self.file, result_path(self.file, "manifest")):
                leftover.unlink(missing_ok=True)
        kept = self.kept.values[name]
        candidate = Candidate(
            recipe, int(kept["file_bytes"]), weight_bytes, predicted, kept["mean_kl"], kept["perplexity"], kept["top1_agreement"]
        )
        self.candidates.append(candidate)
        if self.progress is not None:
            self.progress("candidates", len(self.candidates), max(len(self.candidates), MOST_TRIES))
        return candidate


class _Search:
    def __init__(
        self, request: ExportRequest, budget: Budget, plan: ExportPlan, options: dict[str, dict[str, Option]], judge: _Judged
    ) -> None:
        self.request, self.budget, self.plan, self.options, self.judge = request, budget, plan, options, judge
        self.front = front({pattern: list(own.values()) for pattern, own in options.items()})
        self.sources = plan.weights.weights

    def run(self) -> Candidate:
        if self.budget.max_kl is not None:
            return self._smallest(self.budget.max_kl)
        if self.budget.bits is not None:
            room = int(self.budget.bits * matrix_parameters(self.sources) / 8) - _outside_units(self.plan)
            return self._best(room, lambda candidate: candidate.weight_bytes <= room)
        assert self.budget.max_size is not None
        most = self.budget.max_size
        room = most
        for _ in range(MOST_TRIES):
            choice = self._within(room)
            candidate = self._judge(choice)
            overhead = candidate.file_bytes - candidate.weight_bytes
            if candidate.file_bytes <= most and (choice is self.front[-1] or room >= most - overhead):
                break
            room = most - overhead
        return self._best(room, lambda candidate: candidate.file_bytes <= most)

    def _best(self, room: int, fits: Callable[[Candidate], bool]) -> Candidate:
        """The least KL of the front's choice for the room, one a little smaller, and the uniform recipes."""
        tried = [self._judge(self._within(room)), *self._uniform(room)]
        smaller = within(self.front, room - (room - self.front[0].size) // 20)
        if smaller is not None:
            tried.append(self._judge(smaller))
        fitting = [candidate for candidate in tried if fits(candidate)]
        if not fitting:
            smallest = min(tried, key=lambda candidate: candidate.file_bytes)
            raise ExportError(f"the budget, {self.budget}, cannot be kept: the smallest file has {smallest.file_bytes / 1e6:.2f} MB")
        return min(fitting, key=lambda candidate: candidate.mean_kl)

    def _smallest(self, bound: float) -> Candidate:
        """The smallest file within the bound, by bisection over the front; predictions are corrected by what was measured."""
        low, high = 0, len(self.front) - 1
        best: Candidate | None = None
        ratio = 1.0
        for attempt in range(MOST_TRIES):
            if low > high:
                break
            guess = next((i for i in range(low, high + 1) if self.front[i].cost * ratio <= bound), high)
            if attempt >= 2:
                guess = min(max(guess, low), high) if attempt % 2 else (low + high) // 2
            candidate = self._judge(self.front[guess])
            if self.front[guess].cost > 0:
                ratio = candidate.mean_kl / self.front[guess].cost
            if candidate.mean_kl <= bound:
                best, high = candidate, guess - 1
            else:
                low = guess + 1
        for candidate in self._uniform(self.front[-1].size if best is None else best.weight_bytes - 1):
            if candidate.mean_kl <= bound and (best is None or candidate.file_bytes < best.file_bytes):
                best = candidate
        if best is None:
            nearest = min(candidate.mean_kl for candidate in self.judge.candidates)
            raise ExportError(
                f"the budget, {self.budget}, cannot be kept: the nearest file has a KL of {nearest:.3g}; allow more, or another text"
            )
        return best

    def _within(self, room: int) -> Choice:
        """The front's choice for so many bytes of weights; its smallest, where what else is in the file leaves no more."""
        return within(self.front, room) or self.front[0]

    def _judge(self, choice: Choice) -> Candidate:
        return self.judge.measure(recipe_of(choice.schemes), choice.size, choice.cost)

    def _uniform(self, room: int) -> Iterator[Candidate]:
        """One scheme for all units, where it fits them: what a mixed recipe has to beat."""
        for scheme in dict.fromkeys(scheme for options in self.options.values() for scheme in options):
            if all(scheme in options for options in self.options.values()):
                chosen = [options[scheme] for options in self.options.values()]
                choice = Choice(dict.fromkeys(self.options, scheme), sum(o.size for o in chosen), sum(o.cost for o in chosen))
                if choice.size <= room:
                    yield self._judge(choice)


def _split(documents: list[str]) -> tuple[list[str], list[str]]:
    """The documents to calibrate on and those to judge by; one document alone is cut."""
    if len(documents) == 1:
        at = documents[0].find(" ", int(len(documents[0]) * (1 - JUDGED_SHARE)))
        documents = [documents[0][:at], documents[0][at:]] if at > 0 else documents
    kept = max(1, round(len(documents) * (1 - JUDGED_SHARE)))
    if kept >= len(documents):
        raise TextError("the text is too short to calibrate on one part and to judge by the other: give more")
    return documents[:kept], documents[kept:]


def _write_json(path: Path, value: object) -> None:
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
