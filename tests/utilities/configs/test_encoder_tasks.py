"""What an encoder's checkpoint is read for: its task, its head, its pooling, and the tensors that the task leaves out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.errors import CheckpointError, ConfigError, ExportError, FlatlmError
from flatlm.layers.encoder_config import EmbeddingHead, EncoderConfig, HiddenStates, MaskedLMHead, Pooling, SequenceHead, TokenHead
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportPlan, ExportRequest, plan_export
from flatlm.utilities.reading import Reading
from tests.examples.cases.encoders import ALBERT, BERT, DISTILBERT, ELECTRA, ROBERTA, THREE
from tests.examples.references import Case, make_reference

Made = Callable[[Case], Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A checkpoint of the case."""

    def checkpoint(case: Case) -> Path:
        make_reference(case, tmp_path)
        return tmp_path

    return checkpoint


def planned(directory: Path, task: str | None = None, **request: Any) -> ExportPlan:
    with open_checkpoint(directory) as checkpoint:
        output = request.pop("output", directory / "model.tflite")
        return plan_export(checkpoint, ExportRequest(directory, output, reading=Reading(task=task), **request))


def edit_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = directory / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


MASKED = BERT["ForMaskedLM"].case("masked")
LABELLED = BERT["ForSequenceClassification"].case("labelled", **THREE)


@pytest.mark.parametrize(
    ("case", "head"),
    [
        (BERT["Model"].case("m"), HiddenStates),
        (MASKED, MaskedLMHead),
        (BERT["ForPreTraining"].case("p"), MaskedLMHead),
        (LABELLED, SequenceHead),
        (BERT["ForTokenClassification"].case("t", **THREE), TokenHead),
        (BERT["ForQuestionAnswering"].case("q"), TokenHead),
        (ELECTRA["ForPreTraining"].case("d"), TokenHead),
    ],
    ids=lambda given: str(given) if isinstance(given, Case) else None,
)
def test_the_architecture_says_what_for(made: Made, case: Case, head: type) -> None:
    assert isinstance(build_config(made(case))[0].head, head)


TRAINED = [
    *(
        family[end].case(end)
        for family in (BERT, ROBERTA, ALBERT, ELECTRA, DISTILBERT)
        for end in ("ForMaskedLM", "ForTokenClassification")
    ),
    *(family["ForSequenceClassification"].case("sequences") for family in (BERT, ROBERTA, ALBERT, ELECTRA, DISTILBERT)),
    *(family["ForPreTraining"].case("pretraining") for family in (BERT, ALBERT, ELECTRA)),
]


@pytest.mark.parametrize("case", TRAINED, ids=str)
def test_any_checkpoint_gives_embeddings(made: Made, case: Case) -> None:
    """What its head has is left out, and said to be."""
    directory = made(case)
    plan = planned(directory, "embedding")
    assert not any("head" in name for name in plan.weights.weights)
    used = {part.tensor for weight in plan.weights.weights.values() for part in weight.slot.parts}
    assert used.isdisjoint(plan.weights.ignored)
    assert used | set(plan.weights.ignored) == load_file(directory / "model.safetensors").keys()
    assert plan.weights.ignored


def test_a_task_that_the_checkpoint_was_not_trained_for_is_refused(made: Made) -> None:
    directory = made(MASKED)
    with pytest.raises(ConfigError, match="a BertForMaskedLM has a head for masklm, not for classification as was asked"):
        planned(directory, "classification")
    edit_config(directory, architectures=["BertModel"])
    with pytest.raises(CheckpointError) as caught:
        planned(directory, "classification")
    assert "classifier.weight [2, 32] is missing" in str(caught.value)
    assert "cls.predictions.bias [120] is not used" in str(caught.value)


def test_a_head_of_the_same_names_and_shapes_is_another(made: Made) -> None:
    with pytest.raises(ConfigError, match="a BertForSequenceClassification has a head for classification, not for ner as was asked"):
        planned(made(LABELLED), "ner")


def test_an_older_checkpoint_names_no_architecture(made: Made) -> None:
    directory = made(BERT["Model"].case("m"))
    before = planned(directory).config
    config = json.loads((directory / "config.json").read_text())
    del config["architectures"]
    (directory / "config.json").write_text(json.dumps(config))
    assert planned(directory).config == before


def test_what_another_head_left_behind_is_told(made: Made) -> None:
    directory = made(LABELLED)
    edit_tensors(directory, lambda tensors: {**tensors, "cls.predictions.bias": torch.zeros(120)})
    with pytest.raises(CheckpointError, match=r"cls.predictions.bias \[120\] is not used by the model"):
        planned(directory)
    assert planned(directory, "embedding").weights.ignored


def test_a_masked_language_model_leaves_out_what_it_was_pretrained_beside(made: Made) -> None:
    """As bert-base-uncased is published: its architecture is BertForMaskedLM, its tensors are those of BertForPreTraining."""
    directory = made(BERT["ForPreTraining"].case("published"))
    edit_config(directory, architectures=["BertForMaskedLM"])
    extra = {"bert.embeddings.position_ids": torch.arange(24)[None]}
    edit_tensors(directory, lambda tensors: {**tensors, **extra, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()})
    assert set(planned(directory).weights.ignored) == {
        "bert.embeddings.position_ids",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.predictions.decoder.bias",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    }


def test_older_names_of_norms_are_found(made: Made) -> None:
    """Gamma and beta, as the first BERTs have them."""
    directory = made(MASKED)
    tokens = torch.arange(10, dtype=torch.int32)[None]
    before = build_model(directory)(tokens)["logits"]

    def older(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for name in tensors}
        assert sum(name.endswith("gamma") for name in names.values()) == 8
        return {names[name]: tensor for name, tensor in tensors.items()}

    edit_tensors(directory, older)
    assert torch.equal(build_model(directory)(tokens)["logits"], before)


def test_a_pooler_is_there_where_the_checkpoint_has_one(made: Made) -> None:
    directory = made(BERT["Model"].case("m"))
    assert planned(directory).config.outputs == ("hidden_states", "pooled")
    edit_tensors(directory, lambda tensors: {name: tensor for name, tensor in tensors.items() if "pooler" not in name})
    assert planned(directory).config.outputs == ("hidden_states",)


def sentence_transformer(directory: Path, pooling: dict[str, Any] | None, *more: str) -> None:
    """The files that sentence-transformers puts beside a checkpoint."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    if pooling is not None:
        (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))


def modes(chosen: str) -> dict[str, bool]:
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {f"pooling_mode_{name}": name == chosen for name in names}


@pytest.mark.parametrize(
    ("pooling", "more", "expected"),
    [
        (modes("mean_tokens"), ("Normalize",), EmbeddingHead(Pooling.MEAN, normalised=True)),
        (modes("cls_token"), ("Normalize",), EmbeddingHead(Pooling.CLS, normalised=True)),
        (modes("max_tokens"), (), EmbeddingHead(Pooling.MAX)),
        ({"pooling_mode": "mean"}, (), EmbeddingHead(Pooling.MEAN)),
        ({"pooling_mode": "cls"}, (), EmbeddingHead(Pooling.CLS)),
    ],
)
def test_the_pooling_is_sentence_transformers(made: Made, pooling: dict[str, Any], more: tuple[str, ...], expected: EmbeddingHead) -> None:
    directory = made(BERT["Model"].case("m"))
    sentence_transformer(directory, pooling, *more)
    plan = planned(directory)
    assert (plan.config.task, plan.config.head) == ("embedding", expected)
    assert plan.shape.facts["pooling"] == str(expected.pooling)
    assert planned(directory, "features").config.task == "features"


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        (modes("lasttoken"), (), "pooling by pooling_mode_lasttoken is not supported"),
        ({**modes("cls_token"), "pooling_mode_mean_tokens": True}, (), "pooling by pooling_mode_cls_token, pooling_mode_mean_tokens"),
        ({}, (), "pooling by nothing"),
        (None, (), "1_Pooling/config.json cannot be read"),
        (modes("mean_tokens"), ("Dense",), "a module of type 'Dense' is not supported"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(made: Made, pooling: dict[str, Any] | None, more: tuple[str, ...], message: str) -> None:
    directory = made(BERT["Model"].case("m"))
    sentence_transformer(directory, pooling, *more)
    with pytest.raises(ConfigError, match=message):
        planned(directory)


def test_embeddings_are_the_mean_by_default(made: Made) -> None:
    assert planned(made(MASKED), "embedding").config.head == EmbeddingHead(Pooling.MEAN, normalised=False)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("normalised", [True, False])
def test_eager_embeddings_are_those_of_each_text_by_itself(tmp_path: Path, pooling: Pooling, normalised: bool) -> None:
    reference = make_reference(BERT["Model"].case("m"), tmp_path)
    name = {Pooling.MEAN: "mean_tokens", Pooling.MAX: "max_tokens", Pooling.CLS: "cls_token"}[pooling]
    sentence_transformer(tmp_path, modes(name), *(["Normalize"] if normalised else []))
    model = build_model(tmp_path)
    tokens = torch.randint(1, 120, (12, 12), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    mask = (torch.arange(12)[None] < torch.arange(1, 13)[:, None]).float()
    got = model(tokens, mask)["embedding"]
    for row in range(12):
        states = reference(tokens[row : row + 1, : row + 1].long()).last_hidden_state[0]
        expected = {Pooling.MEAN: states.sum(0) / (row + 1), Pooling.MAX: states.max(0).values, Pooling.CLS: states[0]}[pooling]
        expected = expected / expected.pow(2).sum().sqrt() if normalised else expected
        torch.testing.assert_close(got[row], expected, atol=2e-5, rtol=0)


def test_labels_are_in_the_manifest(made: Made) -> None:
    facts = planned(made(LABELLED), "semantic-matching").shape.facts
    assert facts["labels"] == ["low", "middle", "high"]
    assert (facts["kind"], facts["task"], facts["task_asked"]) == ("encoder", "classification", "semantic-matching")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"position_embedding_type": "relative_key"}, ConfigError, 'position_embedding_type = "relative_key" is not supported'),
        ({"is_decoder": True}, ConfigError, "is_decoder = true is not supported"),
        ({"add_cross_attention": True}, ConfigError, "add_cross_attention = true is not supported"),
        ({"hidden_act": "mish"}, ConfigError, 'hidden_act = "mish" is not supported'),
        ({"num_attention_heads": 5}, ConfigError, "is not a multiple of num_attention_heads"),
        ({"id2label": {"0": "a", "2": "b"}}, ConfigError, "must name the labels 0, 1, 2"),
        ({"id2label": {"0": "a", "1": ["x"], "2": "c"}}, ConfigError, "must name each label by a text"),
        ({"pad_token_id": 9999}, ConfigError, "pad_token_id = 9999 is outside the vocabulary of 120"),
        ({"problem_type": "odd"}, ConfigError, 'problem_type = "odd" is not supported; supported are'),
        ({"id2label": {"0": "a"}}, CheckpointError, "classifier.weight has shape"),
        ({"new_key": 1}, ConfigError, "new_key = 1"),
        ({"max_position_embeddings": 25}, CheckpointError, "position_embeddings.weight has shape"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    made: Made, config: dict[str, Any], error: type[FlatlmError], message: str
) -> None:
    directory = made(LABELLED)
    edit_config(directory, **config)
    with pytest.raises(error, match=message):
        planned(directory)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"kv_cache_len": 16}, "an encoder has no KV cache"),
        ({"kv_cache_dtype": "int8"}, "an encoder has no KV cache"),
        ({"prefill_logits": True}, "an encoder has no KV cache"),
        ({"prefill_lengths": (8, 25)}, "--prefill 25 is longer than the 24 positions"),
        ({"prefill_lengths": (0,)}, "at least 1"),
        ({"output": Path("model.litertlm")}, "export an encoder to .tflite"),
    ],
)
def test_what_an_encoder_cannot_be_is_refused(made: Made, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        planned(made(MASKED), **request_)


def test_recipes_that_calibrate_are_refused(made: Made) -> None:
    with pytest.raises(FlatlmError, match="for decoders alone"):
        planned(made(MASKED), recipe=get_recipe("calibrated_int4_channel"))


def test_lengths_follow_from_the_positions(made: Made) -> None:
    assert planned(made(MASKED)).shape.lengths == (16, 24)
    longer = made(ROBERTA["Model"].case("m", max_position_embeddings=514))
    plan = planned(longer)
    assert plan.shape.lengths == (16, 128, 512)
    assert isinstance(plan.config, EncoderConfig)
    assert plan.config.max_positions == 512


@pytest.mark.parametrize("task", ["poetry", "ner"])
def test_a_task_that_a_model_has_not_is_refused(made: Made, task: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=r"--task poetry: there are|has a head for masklm, not for ner"):
        planned(made(MASKED), task)
