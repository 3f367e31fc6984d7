"""GLM's blank infilling against the plain reference: every parameter random, read at once and with a cache, and as an exported file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.generic import Signatures as GenericSignatures
from flatlm.convert.signatures import SignatureSpec
from flatlm.convert.worker import CachingCompiler
from flatlm.errors import CheckpointError, ConfigError, ExportError, RuntimeFileError
from flatlm.generative.infilling.reference import InfillingReference
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.runner import Runner
from flatlm.generative.verify import VerificationReport, verify
from flatlm.layers.infilling import context_places, span_places
from flatlm.layers.kv_cache import empty_caches
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import build_config, find_builder
from flatlm.utilities.example import build_model, run_sample
from flatlm.utilities.exporter import ExportRequest, export, plan_export
from tests.examples.glm_blank_reference import BASE, GLMReference, save_reference
from tests.examples.references import decide, randomise
from tests.models import Signatures, largest_difference, random_inputs

TOLERANCE = 1e-4
CACHE, PREFILL = 48, (4, 16)
SPANS = [(5, [3, 40, 41, 42]), (2, [3, 50, 51]), (9, [3, 60])]
"""Blanks of a context of ten tokens, out of their order too, and what is read for each."""


def made(directory: Path, *, form: str = "flagai", seed: int = 0, decided: bool = False, **config: object) -> GLMReference:
    model = GLMReference({**BASE, **config}).eval()
    randomise(model, seed=seed, spread=0.2)
    if decided:
        decide(model)
    save_reference(model, directory, form=form)
    return model


def context_of(length: int, seed: int = 7) -> list[int]:
    return np.random.default_rng(seed).integers(4, 128, length).tolist()


def eager_logits(model: InfillingReference, context: list[int], spans: list[tuple[int, list[int]]], *, at_once: bool) -> torch.Tensor:
    out = [model.read_context(context)]
    for mask, tokens in spans:
        model.begin_span(mask)
        out += [model.feed(tokens)] if at_once else [model.feed([token]) for token in tokens]
    return torch.from_numpy(np.concatenate(out))


def file_logits(runner: InfillingRunner, context: list[int], spans: list[tuple[int, list[int]]]) -> torch.Tensor:
    """Logits [S, V] after each token of the spans."""
    runner.read_context(context)
    out = []
    for mask, tokens in spans:
        runner.begin_span(mask)
        out += [runner.step(token) for token in tokens]
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("form", ["flagai", "native", "transformers"])
@torch.inference_mode()
def test_eager_logits_are_the_references(tmp_path: Path, form: str) -> None:
    """Contexts of every length with one blank, and one with three, whose spans are read whole or token by token."""
    reference = made(tmp_path, form=form)
    model = InfillingReference(tmp_path, length=CACHE)
    for length in range(1, 12):
        context, spans = context_of(length), [(length // 2, [3, 20, 21])]
        expected = reference.read(context, spans)
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(eager_logits(model, context, spans, at_once=True), expected, rtol=0, atol=TOLERANCE)
    for at_once in (True, False):
        got = eager_logits(model, context_of(10), SPANS, at_once=at_once)
        torch.testing.assert_close(got, reference.read(context_of(10), SPANS), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "config", [{"num_attention_heads": 2, "hidden_size": 48}, {"vocab_size": 256, "max_sequence_length": 50}, {"num_layers": 1}], ids=str
)
@torch.inference_mode()
def test_other_shapes(tmp_path: Path, config: dict[str, int]) -> None:
    reference = made(tmp_path, **config)
    got = eager_logits(InfillingReference(tmp_path, length=CACHE), context_of(10), SPANS, at_once=True)
    torch.testing.assert_close(got, reference.read(context_of(10), SPANS), rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_several_texts_of_the_same_places_at_once(tmp_path: Path) -> None:
    reference = made(tmp_path)
    model, texts = build_model(tmp_path, kv_cache_max_len=CACHE), [context_of(9, seed) for seed in (1, 2, 3)]
    positions, spans = torch.arange(9, dtype=torch.int32), [(4, [3, 20])]
    caches = empty_caches(model.config, model.geometry, batch=3)
    _, caches = model(torch.tensor(texts, dtype=torch.int32), positions, caches, context_places(9))
    read = torch.tensor([spans[0][1]] * 3, dtype=torch.int32)
    logits, _ = model(read, torch.tensor([9, 10], dtype=torch.int32), caches, span_places(9, 4, (1, 2)))
    expected = torch.stack([reference.read(text, spans)[9:] for text in texts])
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_without_places_a_text_is_read_from_left_to_right(tmp_path: Path) -> None:
    reference, ids = made(tmp_path), torch.tensor([[1, 2, 3, 5, 8, 13]])
    expected = reference(ids, torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)])[None], 0)
    torch.testing.assert_close(run_sample(build_model(tmp_path)), expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def compiler() -> CachingCompiler:
    return CachingCompiler()


def exported(directory: Path, recipe: str, compiler: CachingCompiler) -> Path:
    output = directory / f"{recipe}.tflite"
    export(ExportRequest(directory, output, get_recipe(recipe), PREFILL, CACHE), compiler=compiler)
    return output


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, compiler: CachingCompiler) -> tuple[GLMReference, Path]:
    """A reference, and its float32 file."""
    directory = tmp_path_factory.mktemp("glm")
    return made(directory), exported(directory, "none", compiler)


@torch.inference_mode()
def test_the_file_is_the_reference(exact: tuple[GLMReference, Path]) -> None:
    """Contexts of every length that its prefill signatures hold, padded or not; several blanks; spans read by prefill too."""
    reference, file = exact
    with InfillingRunner.open(file) as runner:
        for length in range(1, PREFILL[-1] + 1):
            context, spans = context_of(length), [(length // 2, [3, 20, 21])]
            expected = reference.read(context, spans)[length:]
            torch.testing.assert_close(file_logits(runner, context, spans), expected, rtol=0, atol=TOLERANCE)
        expected = reference.read(context_of(10), SPANS)[10:]
        torch.testing.assert_close(file_logits(runner, context_of(10), SPANS), expected, rtol=0, atol=TOLERANCE)
        runner.read_context(context_of(10))
        for mask, tokens in SPANS[:2]:
            runner.begin_span(mask)
            runner.prefill(tokens)
        runner.begin_span(SPANS[2][0])
        got = [torch.from_numpy(runner.step(token)) for token in SPANS[2][1]]
        torch.testing.assert_close(torch.stack(got), expected[-2:], rtol=0, atol=TOLERANCE)


def test_verify_judges_the_file(exact: tuple[GLMReference, Path], tmp_path: Path) -> None:
    _, file = exact
    report = verify(file, file.parent, tokens=120)
    assert report.passed and report.against == "eager" and report.tokens_compared == 120
    assert report.max_abs_error <= TOLERANCE
    assert report.greedy_tokens_equal == report.greedy_tokens == 32
    made(tmp_path, seed=1)
    assert not verify(file, tmp_path, tokens=60).passed
    with pytest.raises(ConfigError, match="no class for GLM's blank infilling"):
        verify(file, file.parent, against="transformers")
    made(tmp_path, vocab_size=256)
    with pytest.raises(RuntimeFileError, match="has a vocabulary of 128"):
        verify(file, tmp_path)


def test_int8_is_within_its_recipes_bound(tmp_path: Path, compiler: CachingCompiler) -> None:
    made(tmp_path, decided=True)
    report: VerificationReport = verify(exported(tmp_path, "dynamic_int8", compiler), tmp_path, tokens=160)
    assert report.passed, report
    assert report.mean_kl > 0  # it was rounded


def test_what_the_file_says(exact: tuple[GLMReference, Path]) -> None:
    _, file = exact
    manifest = json.loads(Path(f"{file}.manifest.json").read_text())
    assert (manifest["kind"], manifest["family"]) == ("infilling", "glm_blank_infilling")
    with InfillingRunner.open(file) as runner:
        inputs = runner.file.prefill[0].inputs
        assert inputs["position_ids"].shape == (2, 4) and inputs["prefix"].shape == (1,)
        assert runner.longest_context == 16


def test_a_context_is_read_in_one_call(exact: tuple[GLMReference, Path]) -> None:
    _, file = exact
    with InfillingRunner.open(file) as runner:
        with pytest.raises(RuntimeFileError, match=r"a context of 17 tokens is longer than .* signature, 16, .* --prefill 17"):
            runner.read_context(context_of(17))
        runner.read_context(context_of(5))
        assert (runner.position, runner.context) == (5, 5)
        with pytest.raises(RuntimeFileError, match="no mask can be at place 5"):
            runner.begin_span(5)
        with pytest.raises(RuntimeFileError, match="the context has no tokens"):
            runner.read_context([])


@torch.inference_mode()
def test_a_plain_runner_reads_from_left_to_right(exact: tuple[GLMReference, Path]) -> None:
    """As a benchmark does, which only wants its time."""
    reference, file = exact
    ids = context_of(7)
    rows = torch.stack([torch.arange(7), torch.zeros(7, dtype=torch.long)])
    with Runner.open(file) as runner:
        runner.prefill(ids[:-1])
        got = torch.from_numpy(runner.step(ids[-1]))
    torch.testing.assert_close(got, reference(torch.tensor([ids]), rows[None], 0)[0, -1], rtol=0, atol=TOLERANCE)


def test_a_span_is_rewound_and_a_context_is_not(exact: tuple[GLMReference, Path]) -> None:
    _, file = exact
    with InfillingRunner.open(file) as runner:
        runner.read_context(context_of(6))
        runner.begin_span(2)
        first = [runner.step(token) for token in (3, 20, 21)]
        runner.rewind(7)
        assert runner.can_rewind(6) and not runner.can_rewind(5)
        np.testing.assert_array_equal(np.stack([runner.step(token) for token in (20, 21)]), np.stack(first[1:]))
        with pytest.raises(RuntimeFileError, match="is forgotten as a whole"):
            runner.rewind(3)
        runner.rewind(0)
        assert runner.context == 0


@pytest.mark.slow
def test_the_stamped_file_is_the_generic_paths(tmp_path: Path, exact: tuple[GLMReference, Path]) -> None:
    _, file = exact
    model = build_model(file.parent, kv_cache_max_len=CACHE)
    spec = SignatureSpec("prefill_4", 4, logits=False)
    whole = WholeDecoder(model, spec)
    GenericSignatures().signature(spec.name, whole, sample_kwargs=whole.sample_inputs()).convert().export(tmp_path / "generic.tflite")
    inputs = random_inputs(model, 4, start=5)
    inputs |= {"position_ids": np.array([[2] * 4, [1, 2, 3, 4]], np.int32), "prefix": np.array([5], np.int32)}
    generic = Signatures(tmp_path / "generic.tflite").run("prefill_4", inputs)
    assert largest_difference(Signatures(file).run("prefill_4", inputs), generic) <= 1e-5


def test_no_bundle_for_what_litert_lm_cannot_run(tmp_path: Path) -> None:
    made(tmp_path)
    with open_checkpoint(tmp_path) as store, pytest.raises(ExportError, match=r"out.litertlm: LiteRT-LM .* export to a .tflite file"):
        plan_export(store, ExportRequest(tmp_path, tmp_path / "out.litertlm"))


def test_which_configurations_are_meant(tmp_path: Path) -> None:
    """Not the later models of the same name."""

    def family(**config: object) -> str:
        return find_builder(ConfigReader(config, "config.json")).family

    assert family(**BASE) == family(**BASE, model_type="glm") == "glm_blank_infilling"
    assert family(**BASE, architectures=["GLMModel"], model_type="glm") == "glm_blank_infilling"
    assert family(architectures=["GlmForCausalLM"], model_type="glm") == "glm"
    assert family(architectures=["Glm4ForCausalLM"], model_type="glm4") == "glm4"
    for key, value in {"block_position_encoding": False, "relative_encoding": True, "spell_length": 16, "hidden_size": 65}.items():
        made(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["GLMModel"]}))
        with pytest.raises(ConfigError, match=key):
            build_config(tmp_path)


def test_a_padded_vocabulary_is_found_out(tmp_path: Path) -> None:
    made(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    assert build_config(tmp_path)[0].vocab_size == 128
    made(tmp_path, vocab_size=100)
    assert build_config(tmp_path)[0].vocab_size == 100
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    with pytest.raises(CheckpointError, match="the embedding has 100 rows"):
        build_model(tmp_path)
