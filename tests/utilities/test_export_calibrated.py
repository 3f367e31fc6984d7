"""Calibrated exports of the demo model, to the file and back: its integers, how near it stays, and what is refused before any work."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.cli import main
from flatlm.convert.worker import CachingCompiler, CompilerProcess
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.generative.verify import verify
from flatlm.quantize import calibrate as eager
from flatlm.quantize.carried import IntegerRows
from flatlm.quantize.method import PLAIN, Method
from flatlm.quantize.recipes import Recipe, get_recipe
from flatlm.utilities import exporter
from flatlm.utilities.calibration.sources import Solved
from flatlm.utilities.calibration.text import read_text
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.recipe_file import write_recipe
from tests.convert.test_carried_exports import WEIGHTS, in_file, part, save_checkpoint
from tests.examples.references import Case, make_llama
from tests.utilities.calibration.models import random_text

ASSETS = Path(exporter.__file__).parents[1] / "assets"
DEMO, STORIES = ASSETS / "demo_model", json.loads((ASSETS / "demo_text" / "held_out.json").read_text())
BLOCKS, CHANNELS = get_recipe("dynamic_int4_block32"), get_recipe("dynamic_int4_channel")


@pytest.fixture(scope="module")
def compiler() -> CachingCompiler:
    return CachingCompiler()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.json"
    path.write_text(json.dumps(STORIES[:8]))
    return path


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a head of its own."""
    directory = shutil.copytree(DEMO, tmp_path_factory.mktemp("untied") / "checkpoint")
    change_config(directory, tie_word_embeddings=False)
    change_tensors(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    return directory


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@dataclass
class Exports:
    """Exports with one compilation of each model, and notes what was solved for."""

    directory: Path
    text: Path
    compiler: CachingCompiler
    solved: dict[str, IntegerRows] = field(default_factory=dict)
    recipe: Recipe | None = None
    divergences: dict[tuple[Path, Recipe], float] = field(default_factory=dict)

    def __call__(self, checkpoint: Path, recipe: Recipe, **how: Any) -> Path:
        output = self.directory / f"{len(list(self.directory.iterdir()))}.tflite"
        request = ExportRequest(checkpoint, output, recipe, (64,), 256, True, calibration=self.text)
        export(request, compiler=self.compiler, **how)
        return output

    def kl(self, checkpoint: Path, recipe: Recipe) -> float:
        """Of the file from its checkpoint, on text that was not calibrated on."""
        if (checkpoint, recipe) not in self.divergences:
            found = evaluate(
                EvaluationRequest(self(checkpoint, recipe), STORIES[-4:], checkpoint, max_tokens=400, reference_top=0)
            ).divergence.mean_kl
            assert found is not None
            self.divergences[checkpoint, recipe] = found
        return self.divergences[checkpoint, recipe]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, text: Path, compiler: CachingCompiler) -> Iterator[Exports]:
    found = Exports(tmp_path_factory.mktemp("exports"), text, compiler)
    original = exporter.calibrate_checkpoint

    def noted(*arguments: Any, **named: Any) -> Any:
        chosen = original(*arguments, **named)
        found.recipe = chosen.recipe
        found.solved = {
            name: source.integer_rows(0, source.shape[0]) for name, source in chosen.sources.items() if isinstance(source, Solved)
        }
        return chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "calibrate_checkpoint", noted)
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(("base", "own_head"), [(BLOCKS, False), (CHANNELS, True)], ids=["blocks_tied_head", "channels_own_head"])
def test_the_file_holds_the_integers_that_were_solved_for(base: Recipe, own_head: bool, exports: Exports, untied: Path) -> None:
    mixed = replace(Recipe.mixed("mixed", base, {"blocks.3.*": "dynamic_int8"}), method=Method("gptq"))
    path = exports(untied if own_head else DEMO, mixed)
    assert len(exports.solved) == 4 * 5 + 1
    assert ("lm_head.weight" in exports.solved) == own_head
    for name, rows in exports.solved.items():
        integers, scales = in_file(path, name)
        assert torch.equal(integers, rows.integers)
        assert torch.equal(scales, rows.scales)
    manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text())
    assert manifest["calibration"]["file"] == "calibration.json"
    assert manifest["calibration"]["tokens"] > 512
    assert manifest["recipe"]["method"]["rounding"] == "gptq"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "method", "share"),
    [
        (BLOCKS, Method("scale_search"), 0.95),
        (CHANNELS, Method("scale_search"), 0.95),
        (BLOCKS, Method("gptq"), 0.7),
        (CHANNELS, Method("gptq"), 0.7),
        (BLOCKS, Method("scale_search", migrate=True), 0.95),
        (CHANNELS, Method("gptq", migrate=True), 0.7),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_file_stays_nearer_than_by_rounding(base: Recipe, method: Method, share: float, exports: Exports) -> None:
    assert exports.kl(DEMO, replace(base, method=method)) < share * exports.kl(DEMO, replace(base, method=PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [(Method("scale_search", rotate=True), 1.0), (Method("gptq", rotate=True), 0.8)], ids=str)
def test_a_rotated_file_stays_nearer_than_by_rounding(method: Method, share: float, exports: Exports, untied: Path) -> None:
    assert exports.kl(untied, replace(CHANNELS, method=method)) < share * exports.kl(untied, CHANNELS)


@pytest.mark.slow
@pytest.mark.parametrize("method", [Method(rotate=True), Method(smooth=0.5)], ids=str)
def test_without_rounding_the_file_is_the_checkpoint(method: Method, exports: Exports, untied: Path) -> None:
    assert exports.kl(untied, replace(get_recipe("none"), method=method)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("method", [PLAIN, Method(smooth=0.5)], ids=["plain", "smooth"])
def test_static_ranges_are_those_of_the_eager_model(method: Method, exports: Exports, text: Path) -> None:
    static = replace(get_recipe("static_int8"), method=method)
    assert exports.kl(DEMO, static) < 0.02
    assert exports.recipe is not None
    found = exports.recipe.activations
    assert len(found) == 6 * 4
    if method == PLAIN:
        rows = read_text(text, DEMO, vocab_size=1024, max_positions=512)
        samples = [
            (row[None, :length], torch.arange(length, dtype=torch.int32))
            for row, length in zip(rows.tokens, rows.lengths.tolist(), strict=True)
        ]
        expected = eager.calibrate(build_model(DEMO, kv_cache_max_len=512), samples)
        for name, ranges in found.items():
            for side in ("input", "output"):
                got, wanted = getattr(ranges, side), getattr(expected[name], side)
                assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_recipe_from_a_file_is_proved_like_any_other(exports: Exports, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mine.json", replace(BLOCKS, name="mine", method=Method("gptq", migrate=True)))
    out = tmp_path / "out.tflite"
    arguments = ["--recipe", str(tmp_path / "mine.json"), "--calibration", str(exports.text), "--prefill", "16", "--kv-cache-len", "64"]
    assert main(["export", str(DEMO), "-o", str(out), *arguments, "--verify-tokens", "64"]) == 0
    manifest = json.loads((tmp_path / "out.tflite.manifest.json").read_text())
    assert manifest["recipe"]["name"] == "mine"
    assert manifest["recipe"]["method"] == {"rounding": "gptq", "rotate": False, "migrate": True, "smooth": None}
    assert manifest["verification"]["tokens_compared"] >= 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "out.tflite", "out.tflite.manifest.json"]


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["scale_search", "gptq"])
def test_integers_of_a_quantized_checkpoint_are_kept(
    rounding: str, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = save_checkpoint(tmp_path / "checkpoint", "gptq")
    config = build_model(tmp_path / "checkpoint").config
    monkeypatch.setattr(exporter, "read_text", lambda *_, **__: random_text(config, 40))
    recipe = replace(BLOCKS, method=Method(rounding, migrate=rounding == "gptq"))  # type: ignore[arg-type]
    path = exports(tmp_path / "checkpoint", recipe, prove=lambda path: verify(path, tmp_path / "checkpoint", tokens=32).to_dict())
    for layer in range(2):
        for weight, projections in WEIGHTS.items():
            integers, scales = in_file(path, f"blocks.{layer}.{weight}.weight")
            expected, given = part(linears, layer, *projections)
            assert torch.equal(integers.long(), expected)
            assert torch.equal(scales, given)
    manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text())
    assert manifest["integers"]["carried"] == 8
    assert set(exports.solved) == ({"lm_head.weight"} if rounding == "gptq" else set())


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 172 columns and 128 words, with the demo model's tokenizer, which knows more words."""
    directory = tmp_path_factory.mktemp("odd")
    make_llama(Case("odd", {"intermediate_size": 172}), directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory)
    return directory


def recipe_file(directory: Path, **changes: object) -> str:
    data = get_recipe("calibrated_int4_channel").to_dict() | changes
    (directory / "r.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None or key == "warning"}))
    return str(directory / "r.json")


def written(name: str, content: str) -> Callable[[Path], str]:
    def write(directory: Path) -> str:
        (directory / name).write_text(content)
        return str(directory / name)

    return write


INT8 = {"pattern": "*", "scheme": "dynamic_int8"}
ENOUGH = written("text.json", json.dumps(STORIES[:8]))
REFUSED: dict[str, tuple[str, Callable[[Path], str] | str, Callable[[Path], str] | None, str]] = {
    "no text": ("demo", "calibrated_int4_block32", None, "--calibration"),
    "no text for ranges": ("demo", "static_int8", None, "--calibration"),
    "text is missing": ("demo", "calibrated_int4_block32", lambda place: str(place / "none.txt"), "none.txt cannot be read"),
    "text is empty": ("demo", "calibrated_int4_block32", written("empty.txt", ""), "empty.txt: the text is empty"),
    "text is short": ("demo", "calibrated_int4_block32", written("short.txt", "Once upon a time."), "tokens are too few to calibrate on"),
    "wrong tokenizer": ("odd", "calibrated_int4_channel", ENOUGH, "wrong tokenizer"),
    "columns do not fit": ("odd", "calibrated_int4_block32", ENOUGH, "172 columns are not a multiple of 32"),
    "recipe has another key": ("demo", lambda place: recipe_file(place, bits=4), ENOUGH, "r.json: unknown recipe key 'bits'"),
    "recipe is not JSON": ("demo", written("r.json", "{"), ENOUGH, "r.json is not a recipe"),
    "recipe is missing": ("demo", lambda place: str(place / "none.json"), ENOUGH, "none.json cannot be read"),
    "recipe names no weight": (
        "demo",
        lambda place: recipe_file(place, rules=[{"pattern": "blocks.9.*", "scheme": "float16"}, INT8]),
        ENOUGH,
        "no weight is decided by 'blocks.9.*'",
    ),
    "recipe has another scheme": (
        "demo",
        lambda place: recipe_file(place, rules=[{"pattern": "*", "scheme": "dynamic_int5"}]),
        ENOUGH,
        "unknown scheme",
    ),
    "a tied head cannot turn": ("demo", lambda place: recipe_file(place, method={"rotate": True}), ENOUGH, "tied to the embedding"),
    "a head of static activations": (
        "demo",
        lambda place: recipe_file(place, rules=[{"pattern": "*", "scheme": "static_int8"}]),
        ENOUGH,
        "embedding.weight cannot have static activations",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(
    name: str, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompilerProcess, "submit", lambda *_: pytest.fail("it was compiled"))
    monkeypatch.setattr(exporter, "calibrate_checkpoint", lambda *_, **__: pytest.fail("it was calibrated"))
    model, recipe, calibration, words = REFUSED[name]
    inputs, out = tmp_path / "inputs", tmp_path / "out" / "model.tflite"
    inputs.mkdir()
    out.parent.mkdir()
    arguments = ["--recipe", recipe if isinstance(recipe, str) else recipe(inputs)]
    arguments += [] if calibration is None else ["--calibration", calibration(inputs)]
    assert main(["export", str(DEMO if model == "demo" else odd), "-o", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("recipe", ["calibrated_int4_block32", "searched_int4_block32", "static_int8"])
@pytest.mark.parametrize("tensor", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_leaves_nothing(
    tensor: str, recipe: str, text: Path, compiler: CachingCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if recipe == "searched_int4_block32":  # which is linked before a weight is read
        monkeypatch.setattr(exporter, "CONCURRENT_FROM", 0)
    checkpoint, out = shutil.copytree(DEMO, tmp_path / "checkpoint"), tmp_path / "out"
    change_tensors(checkpoint, lambda tensors: tensors[tensor].__setitem__((1, 3), torch.nan))
    out.mkdir()
    with pytest.raises(Exception, match=rf"model\.safetensors: tensor {tensor} holds NaN or infinity"):
        export(ExportRequest(checkpoint, out / "model.tflite", get_recipe(recipe), (4,), 16, calibration=text), compiler=compiler)
    assert list(out.iterdir()) == []
