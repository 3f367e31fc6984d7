"""Encoders called by keyword give what transformers gives, with every head; they and their CRF survive a round trip."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flatlm import check_model
from flatlm.errors import CheckpointError, ConfigError
from flatlm.tasks.base_model import BaseModel
from flatlm.tasks.crf_loss import crf_loss
from flatlm.tasks.models import BertForClsClassifier, BertForMaskLM, BertForSequenceLabeling, BertForSequenceLabelingCRF, BertModel
from flatlm.utilities.checkpoints.directory import Checkpoint
from tests.tasks.made import CONFIG, LABELS, add_crf, make_bert, named

HEADS = {
    "Model": None,
    "ForMaskedLM": torch.tensor([[5, -100, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, -100, -100, -100]]),
    "ForSequenceClassification": torch.tensor([3, 1]),
    "ForTokenClassification": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [1, 2, 3, 4, 0, -100, -100, -100]]),
}


def texts() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (2, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": (torch.arange(8) > 3).long().expand(2, 8) * mask}


@pytest.mark.parametrize("head", HEADS)
@torch.inference_mode()
def test_forward_is_transformers(head: str, tmp_path: Path) -> None:
    reference = make_bert(tmp_path, head, **(named(LABELS) if "Classification" in head else {}))
    given = texts() | ({} if HEADS[head] is None else {"labels": HEADS[head]})
    got = BaseModel.from_pretrained(tmp_path)(**given, mems=None)
    expected = reference(**given, output_hidden_states=True)
    real = given["attention_mask"].bool()
    assert len(got["hidden_states"]) == len(expected.hidden_states) == CONFIG["num_hidden_layers"] + 1
    for mine, other in zip(got["hidden_states"], expected.hidden_states, strict=True):
        assert float((mine - other)[real].abs().max()) <= 1e-4
    if head == "Model":
        assert float((got["pooled"] - expected.pooler_output).abs().max()) <= 1e-4
        assert got["logits"] is got["hidden_states"][-1]
        return
    difference = (got["logits"] - expected.logits).abs()
    assert float((difference if got["logits"].dim() == 2 else difference[real]).max()) <= 1e-4
    assert float(got["loss"]) == pytest.approx(float(expected.loss), abs=1e-5)


@pytest.mark.parametrize(("config", "labels"), [({"num_labels": 1}, [0.5, -1.0]), ({"num_labels": 3}, [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])])
@torch.inference_mode()
def test_losses_of_numbers_and_of_several_labels(config: dict[str, Any], labels: list[Any], tmp_path: Path) -> None:
    reference = make_bert(tmp_path, "ForSequenceClassification", **config)
    got = BertForClsClassifier.from_pretrained(tmp_path)(**texts(), labels=torch.tensor(labels))
    assert float(got["loss"]) == pytest.approx(float(reference(**texts(), labels=torch.tensor(labels)).loss), abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_round_trip(head: str, tmp_path: Path) -> None:
    make_bert(tmp_path / "first", head)
    model = BaseModel.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    again = BaseModel.from_pretrained(tmp_path / "second")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    loaded, info = getattr(transformers, f"Bert{head}").from_pretrained(tmp_path / "second", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    original = getattr(transformers, f"Bert{head}").from_pretrained(tmp_path / "first")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in original.state_dict().items())


def test_a_crf_survives(tmp_path: Path) -> None:
    make_bert(tmp_path / "first", "ForTokenClassification", **named(LABELS))
    tensors = add_crf(tmp_path / "first")
    model = BertForSequenceLabeling.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    labels = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, -100, -100, -100]])
    out = model(**texts(), labels=labels)
    assert float(out["loss"]) == pytest.approx(float(crf_loss(tensors, out["logits"], labels)))
    with Checkpoint.open(tmp_path / "second") as checkpoint:
        assert all(torch.equal(checkpoint.read(name), value) for name, value in tensors.items())


def test_labels_that_a_crf_does_not_have() -> None:
    with pytest.raises(ConfigError, match="labels of a CRF are 0 to 2"):
        crf_loss({"crf.transitions": torch.zeros(3, 3)}, torch.zeros(1, 2, 3), torch.tensor([[0, -1]]))


def test_the_class_with_a_crf_has_one(tmp_path: Path) -> None:
    make_bert(tmp_path / "made", "ForTokenClassification", **named(LABELS))
    model = BertForSequenceLabelingCRF.init_from_json(tmp_path / "made" / "config.json")
    assert model.crf["crf.transitions"].shape == (len(LABELS), len(LABELS))
    model.save_pretrained(tmp_path / "saved")
    assert BertForSequenceLabelingCRF.from_pretrained(tmp_path / "saved").crf.keys() == model.crf.keys()
    with pytest.raises(CheckpointError, match="has no CRF"):
        BertForSequenceLabelingCRF.from_pretrained(tmp_path / "made")


def test_classes_read_all_models_of_their_structure(tmp_path: Path) -> None:
    make_bert(tmp_path, "ForMaskedLM")
    assert BertForMaskLM.from_pretrain(tmp_path.parent, tmp_path.name).module.config.task == "masklm"
    assert BertModel.from_pretrained(tmp_path).module.config.task == "masklm"  # the checkpoint's own head
    with pytest.raises(Exception, match="classif"):
        BertForClsClassifier.from_pretrained(tmp_path)


def test_init_from_json(tmp_path: Path) -> None:
    make_bert(tmp_path / "made", "ForTokenClassification", **named(LABELS))
    file = tmp_path / "config.json"
    file.write_text((tmp_path / "made" / "config.json").read_text())
    model = BertForSequenceLabeling.init_from_json(file, num_hidden_layers=1)
    assert model(**texts())["logits"].shape == (2, 8, len(LABELS))
    model.save_pretrained(tmp_path / "saved")
    _, info = transformers.BertForTokenClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("model_class", "given", "saved"),
    [
        (BertForMaskLM, [], "BertForMaskedLM"),
        (BertForSequenceLabeling, ["BertModel"], "BertForTokenClassification"),
        (BertForClsClassifier, ["BertModel"], "BertForSequenceClassification"),
    ],
)
def test_what_was_made_is_saved_as_what_it_is(model_class: Any, given: list[str], saved: str, tmp_path: Path) -> None:
    values = {**CONFIG, "model_type": "bert", "architectures": given}
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value}))
    model = model_class.init_from_json(tmp_path / "config.json")
    model.save_pretrained(tmp_path / "saved")
    again = model_class.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    check = check_model(tmp_path / "saved")
    assert check.ok, check.problem
    loaded, info = getattr(transformers, saved).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.inference_mode():
        assert torch.allclose(model(**texts())["logits"][0, 0], loaded.eval()(**texts()).logits[0, 0], atol=1e-4)


def test_a_configuration_by_itself_has_a_pooler(tmp_path: Path) -> None:
    make_bert(tmp_path / "made", "Model")
    (tmp_path / "config.json").write_text((tmp_path / "made" / "config.json").read_text())
    assert BertModel.init_from_json(tmp_path / "config.json")(**texts())["pooled"].shape == (2, CONFIG["hidden_size"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs input_ids"),
        ({"input_ids": [[1] * 25]}, "25 tokens: the model knows 24"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}, "token_type_ids holds 2"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "labels have the shape"),
        ({"input_ids": [[1, 2]], "labels": [[1, 64]]}, "labels are 0 to 63"),
        ({"input_ids": [[1, 2]], "labels": [[-1, 5]]}, "labels are 0 to 63"),
    ],
)
def test_wrong_inputs(inputs: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_bert(tmp_path, "ForMaskedLM")
    with pytest.raises(ConfigError, match=message):
        BertForMaskLM.from_pretrained(tmp_path)(**inputs)
