"""Encoders' files: how they are run, judged, and told from others."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from flatlm.errors import CheckpointError, ConfigError, RuntimeFileError, TokenizerError
from flatlm.generative.encoders.encoder_file import read_encoder_file
from flatlm.generative.encoders.runner import EncoderRunner
from flatlm.generative.encoders.verify import Tally
from flatlm.generative.inspect import inspect_file, read_manifest
from flatlm.generative.prove import describe_verification
from flatlm.generative.runner import Runner
from flatlm.generative.verify import VerificationReport, verify
from flatlm.quantize.recipes import BOUNDS, Bound, get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.reading import Reading
from tests.examples.cases.encoders import ALBERT, BERT, DISTILBERT, THREE
from tests.examples.references import make_reference

CASES = {
    "bert": BERT["ForSequenceClassification"].case("c", **THREE),
    "regression": BERT["ForSequenceClassification"].case("r", num_labels=1, problem_type="regression"),
    "albert": ALBERT["ForMaskedLM"].case("m", num_hidden_layers=6),
    "distilbert": DISTILBERT["Model"].case("m"),
}
Exported = Callable[..., Path]
NOISE = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A case's file, in a folder beside `checkpoint`; made once for each recipe and task."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def made(case: str, recipe: str = "none", task: str | None = None) -> Path:
        checkpoint = folder / case / "checkpoint"
        if not checkpoint.exists():
            make_reference(CASES[case], checkpoint)
        file = folder / case / f"{recipe}_{task}.tflite"
        export(ExportRequest(checkpoint, file, get_recipe(recipe), (8, 20), reading=Reading(task=task)))
        return file

    return made


def judged(file: Path, checkpoint: Path | None = None, **more: Any) -> VerificationReport:
    return verify(file, checkpoint or file.parent / "checkpoint", tokens=100, **more)


def test_the_file_says_what_it_is_for(exported: Exported) -> None:
    file = read_encoder_file(exported("bert"))
    assert (file.task, file.labels, file.longest, file.outputs) == ("classification", ("low", "middle", "high"), 20, ("logits",))
    assert (file.token_types, file.vocab_size, file.pad_token_id, file.regression) == (2, 120, 0, False)
    assert read_encoder_file(exported("regression")).regression


def test_padding_changes_nothing(exported: Exported) -> None:
    ids, types = [3, 1, 4, 1, 5, 9], [0, 0, 0, 1, 1, 1]
    with EncoderRunner.open(exported("bert")) as runner:
        assert runner.lengths == (8, 20)
        short = runner.run(ids, types)["logits"]
        longer = runner._signatures[20].run(np.array(ids), np.array(types), 0)["logits"]
        assert short.shape == (3,)
        np.testing.assert_allclose(short, longer, atol=1e-5)
        runner.run(list(range(20)))  # what was there before is not read again
        np.testing.assert_array_equal(runner.run(ids, types)["logits"], short)
        assert np.abs(runner.run(ids)["logits"] - short).max() > 1e-3  # the types count


def test_outputs_of_tokens_are_those_of_real_ones(exported: Exported) -> None:
    with EncoderRunner.open(exported("distilbert")) as runner:
        assert runner.run([5] * 11)["hidden_states"].shape == (11, 32)


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([], None, "a text of 0 tokens does not fit; it reads 1 to 20"),
        ([1] * 21, None, "a text of 21 tokens does not fit"),
        ([1, 120], None, "token 120 is outside its vocabulary of 120"),
        ([-1], None, "token -1 is outside"),
        ([1, 2, 3], [0, 1], "2 token types for 3 tokens"),
        ([1, 2, 3], [0, 0, 2], "token type 2 is outside its model's 2: they are 0 to 1"),
        ([1, 2, 3], [0, -1, 0], "token type -1 is outside"),
        ([1, 2, 3], [0, 0, 2**40], f"token type {2**40} is outside"),
        ([2.7], None, r"tokens are a list of whole numbers, not \[2.7\]"),
        ([1], [0.5], "token types are a list of whole numbers"),
        ([2**80], None, "tokens are a list of whole numbers"),
    ],
)
def test_texts_that_do_not_fit_are_refused(exported: Exported, ids: list[int], types: list[int] | None, message: str) -> None:
    with EncoderRunner.open(exported("bert")) as runner, pytest.raises(RuntimeFileError, match=message):
        runner.run(ids, types)


def test_types_for_a_model_without_types_are_refused(exported: Exported) -> None:
    with EncoderRunner.open(exported("distilbert")) as runner:
        runner.run([1, 2], [0, 0])
        with pytest.raises(RuntimeFileError, match="its model has no token types"):
            runner.run([1, 2], [0, 1])


def test_the_files_of_other_kinds_are_refused(exported: Exported, tiny_file: Path) -> None:
    with pytest.raises(RuntimeFileError, match="is not an encoder's file"):
        EncoderRunner.open(tiny_file)
    with pytest.raises(RuntimeFileError, match=r"holds an encoder: .* `flatlm predict` reads texts with it"):
        Runner.open(exported("bert"))


def test_layers_that_share_a_block_share_its_weights(exported: Exported) -> None:
    """Six layers of one block: the file holds one."""
    inspection = inspect_file(exported("albert"))
    state = load_file(exported("albert").parent / "checkpoint" / "model.safetensors")
    stored = sum(tensor.numel() * 4 for name, tensor in state.items() if not name.startswith("predictions.decoder"))
    assert sum(size for _, size in inspection.weights.values()) == pytest.approx(stored, rel=0.01)
    layers = inspection.signatures[0].operators["SOFTMAX"]
    assert layers == 6 == inspection.manifest["layers"]


@pytest.mark.parametrize(
    ("case", "task"), [("bert", None), ("bert", "embedding"), ("regression", None), ("distilbert", None), ("albert", None)]
)
def test_int8_is_within_its_bound_and_told_in_the_figures_that_suit_it(exported: Exported, case: str, task: str | None) -> None:
    report = judged(exported(case, "dynamic_int8", task), against="transformers")
    assert report.passed
    assert report.against == "transformers"
    distributions = task is None and case in ("bert", "albert")
    assert (report.mean_kl is not None, report.top1_agreement is not None) == (distributions, distributions)
    assert (report.mean_cosine is not None) == (not distributions)
    assert report.greedy_tokens is None
    line = describe_verification(report.to_dict())
    assert ("mean KL" in line, "mean cosine" in line, "greedy" in line) == (distributions, not distributions, False)


def test_the_eager_model_is_a_reference_too(exported: Exported) -> None:
    assert judged(exported("bert", "none", "embedding"), against="eager").max_abs_error <= 1e-4


@pytest.mark.parametrize(("case", "task"), [("bert", None), ("bert", "embedding"), ("regression", None)])
def test_another_checkpoint_fails(exported: Exported, tmp_path: Path, case: str, task: str | None) -> None:
    for recipe in ("none", "dynamic_int8"):
        file = exported(case, recipe, task)
        make_reference(CASES[case], tmp_path, seed=1)
        assert not judged(file, tmp_path).passed


def test_one_weight_that_differs_fails_in_float32(exported: Exported, tmp_path: Path) -> None:
    file = exported("bert")
    make_reference(CASES["bert"], tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["bert.encoder.layer.1.output.LayerNorm.bias"][3] += 0.01
    save_file(state, tmp_path / "model.safetensors")
    report = judged(file, tmp_path)
    assert not report.passed
    assert report.max_abs_error > 1e-4


def test_a_checkpoint_for_another_shape_or_task_is_refused(exported: Exported, tmp_path: Path) -> None:
    make_reference(BERT["ForSequenceClassification"].case("two"), tmp_path)
    with pytest.raises(RuntimeFileError, match="give the checkpoint it came from"):
        judged(exported("bert"), tmp_path)
    with pytest.raises(RuntimeFileError, match="was exported for the task classification, not embedding"):
        judged(exported("bert"), reading=Reading(task="embedding"))
    assert judged(exported("bert"), reading=Reading(task="semantic-matching")).passed


def test_answers_are_distributions_over_a_texts_tokens() -> None:
    """Where one starts, and where it ends: what is added to both logits of a token counts, what is added to all tokens' does not."""
    logits = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    expected = {"logits": logits}
    tally = Tally("question-answering")
    tally.add(expected, {"logits": logits + np.float32([[3.0, -3.0]])}, 6)
    assert tally.mean_kl == pytest.approx(0, abs=1e-9)
    tally.add(expected, {"logits": logits + np.arange(6, dtype=np.float32)[:, None]}, 6)
    assert tally.mean_kl is not None
    assert tally.mean_kl > 0.1


@pytest.mark.parametrize(
    ("task", "yes_or_no", "name", "expected", "got"),
    [
        ("classification", False, "logits", 20 + NOISE[:, :1], 3 + 0 * NOISE[:, :1]),
        ("classification", False, "logits", 2 + 0.01 * NOISE[:, :1], 2 + 0 * NOISE[:, :1]),
        ("classification", False, "logits", NOISE[:, :1], 5 + NOISE[:, :1]),
        ("embedding", False, "embedding", NOISE, 3 * NOISE),
        ("classification", True, "logits", NOISE, NOISE + 5),
        ("replaced-tokens", True, "logits", NOISE[:, :1], NOISE[:, :1] + 5),
    ],
)
def test_what_no_direction_tells_fails(
    task: str, yes_or_no: bool, name: str, expected: NDArray[np.float32], got: NDArray[np.float32]
) -> None:
    for other, passes in ((got, False), (expected + 1e-4 * NOISE[::-1, : expected.shape[1]], True)):
        tally = Tally(task, yes_or_no)
        for one, another in zip(expected, other, strict=True):
            tally.add({name: one}, {name: another}, 1)
        assert tally.within(BOUNDS["dynamic_int8"]) == passes


def test_logits_that_each_answer_by_themselves_are_judged_so(exported: Exported) -> None:
    file = read_encoder_file(exported("bert"))
    kinds = (file, replace(file, multi_label=True), replace(file, task="replaced-tokens"))
    assert [Tally.of(kind).yes_or_no for kind in kinds] == [False, True, True]


def test_numbers_that_are_not_finite_fail() -> None:
    for task, shape in (("features", (3, 4)), ("classification", (3,)), ("classification", (1,))):
        tally = Tally(task)
        tally.add({"logits": np.ones(shape, np.float32)}, {"logits": np.full(shape, np.nan, np.float32)}, 3)
        assert not tally.within(Bound())
        assert tally.max_abs_error == float("inf")


def test_prompts_need_a_tokenizer_and_room(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        judged(exported("bert"), prompts=("a text",))
    make_reference(CASES["bert"], tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the of to and that it".split()]  # noqa: SIM905
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    report = judged(exported("bert"), tmp_path, prompts=("that of the",))
    assert report.passed
    assert report.tokens_compared >= 100
    with pytest.raises(RuntimeFileError, match="has 22 tokens; the file reads 1 to 20"):
        judged(exported("bert"), tmp_path, prompts=("the " * 20,))


def test_the_manifest_says_the_pooling(exported: Exported) -> None:
    manifest = read_manifest(exported("bert", "none", "embedding"))
    assert (manifest["pooling"], manifest["normalised"], manifest["dimensions"]) == ("mean", False, 32)


def test_a_checkpoint_without_the_head_is_no_reference(exported: Exported, tmp_path: Path) -> None:
    """Transformers would make the head's weights up."""
    make_reference(BERT["Model"].case("m", **THREE), tmp_path)
    for against, message in (("transformers", r"has no classifier.bias, classifier.weight"), ("eager", r"classifier.weight .* is missing")):
        with pytest.raises(CheckpointError, match=message):
            judged(exported("bert"), tmp_path, against=against)
    make_reference(BERT["ForMaskedLM"].case("m", **THREE), tmp_path)
    with pytest.raises(ConfigError, match="a BertForMaskedLM has a head for masklm, not for classification"):
        judged(exported("bert"), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 60}, "has a vocabulary of 120, .* one of 60: give the checkpoint it came from"),
        ({"max_position_embeddings": 12}, "reads 20 tokens, .* 12"),
        ({"type_vocab_size": 1}, "has 2 token types, .* 1"),
    ],
)
def test_a_checkpoint_that_cannot_read_the_files_texts_is_refused(
    exported: Exported, tmp_path: Path, config: dict[str, int], message: str
) -> None:
    make_reference(BERT["ForSequenceClassification"].case("c", **THREE, **config), tmp_path)
    with pytest.raises(RuntimeFileError, match=message):
        judged(exported("bert"), tmp_path)
