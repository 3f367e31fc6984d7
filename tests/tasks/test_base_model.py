"""Models called by keyword give what transformers gives: logits, every layer's hidden states, the loss; and survive a round trip."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flatlm.errors import ConfigError
from flatlm.tasks import models
from flatlm.tasks.base_model import BaseModel
from flatlm.tasks.models import GPT2Model, LlamaModel, OPTModel
from flatlm.utilities.checkpoints.directory import Checkpoint
from tests.examples.cases import ALL
from tests.examples.references import Case, make_reference

TOLERANCE = 1e-4
ONE_OF_EACH = list({(case.family, case.reference): case for case in reversed(ALL)}.values())
"""The first case of every family."""
PACKED = [case for case in ALL if case.family in ("falcon", "gpt_neox", "gemma", "olmoe") and case not in ONE_OF_EACH][:8]
FORWARD = [case for case in ONE_OF_EACH if case.family in ("gpt2", "opt", "llama", "gemma2", "falcon", "mixtral")]


def find(family: str) -> Case:
    return next(case for case in ALL if case.family == family)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of 12 ids: whole, padded behind, padded in front."""
    ids = torch.randint(3, 96, (3, 12), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    mask[2, :5] = 0
    return ids, mask


@pytest.mark.parametrize("case", FORWARD, ids=str)
@torch.inference_mode()
def test_forward_is_transformers(case: Case, tmp_path: Path) -> None:
    reference = make_reference(case, tmp_path)
    model = BaseModel.from_pretrained(tmp_path)
    ids, mask = padded()
    labels = torch.where(mask == 1, ids, -100)
    labels[2, 5] = -100  # what padding predicts is nobody's affair
    positions = (mask.cumsum(-1) - 1).clamp(min=0) * mask
    more = {"position_ids": positions} if case.family in ("gpt2", "llama") else {}
    got = model(input_ids=ids, attention_mask=mask, labels=labels, return_memory=False, mems=None)
    expected = reference(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True, use_cache=False, **more)
    assert set(got) == {"logits", "hidden_states", "loss"}
    assert len(got["hidden_states"]) == len(expected.hidden_states)
    real = mask.bool()
    assert float(expected.logits.std()) > 0.1
    assert float((got["logits"] - expected.logits)[real].abs().max()) <= TOLERANCE
    for mine, other in zip(got["hidden_states"], expected.hidden_states, strict=True):
        assert float((mine - other)[real].abs().max()) <= TOLERANCE
    assert float(got["loss"]) == pytest.approx(float(expected.loss), abs=1e-5)


@torch.inference_mode()
def test_positions_may_be_given(tmp_path: Path) -> None:
    reference = make_reference(find("gpt2"), tmp_path)
    model = GPT2Model.from_pretrained(tmp_path)
    ids, positions = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[3, 9, 4, 60]])
    got = model(input_ids=ids, position_ids=positions)["logits"]
    assert float((got - reference(input_ids=ids, position_ids=positions).logits).abs().max()) <= TOLERANCE
    assert float((got - model(input_ids=ids)["logits"]).abs().max()) > 0.1
    assert torch.equal(model(input_ids=[5, 6, 7, 8], position_ids=[3, 9, 4, 60])["logits"], got)


def round_trip(directory: Path, copy: Path) -> tuple[Any, Any]:
    """A model, and the same after it was saved and loaded."""
    model = BaseModel.from_pretrained(directory)
    model.save_pretrained(copy)
    return model, BaseModel.from_pretrained(copy)


@pytest.mark.parametrize("case", [*ONE_OF_EACH, *PACKED], ids=str)
def test_saving_gives_the_same_model_and_checkpoint(case: Case, tmp_path: Path) -> None:
    """Bit for bit, in both ways: the parameters, and (but for differences from 1, which are rounded when 1 is added) the tensors."""
    make_reference(case, tmp_path / "first")
    model, again = round_trip(tmp_path / "first", tmp_path / "second")
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    offset = any(part.offset for slot in model._slots for part in slot.parts)
    with Checkpoint.open(tmp_path / "first") as first, Checkpoint.open(tmp_path / "second") as second:
        used = {part.tensor for slot in model._slots for part in slot.parts}
        assert second.tensors.keys() == used
        for name in used:
            assert torch.allclose(second.read(name), first.read(name), rtol=0, atol=1e-6 if offset else 0), name


@pytest.mark.parametrize("family", ["gpt2", "falcon", "olmoe"])
def test_transformers_reads_what_was_saved(family: str, tmp_path: Path) -> None:
    case = find(family)
    reference = make_reference(case, tmp_path / "first")
    round_trip(tmp_path / "first", tmp_path / "second")
    loaded, info = getattr(transformers, case.reference).from_pretrained(tmp_path / "second", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, value in reference.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_changed_weights_are_saved(tmp_path: Path) -> None:
    make_reference(find("gpt2"), tmp_path / "first")
    model = BaseModel.from_pretrained(tmp_path / "first")
    generator = torch.Generator().manual_seed(9)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "second")
    again = BaseModel.from_pretrained(tmp_path / "second")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "second").eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.allclose(reference(ids).logits, model(input_ids=ids)["logits"], rtol=1e-4, atol=1e-3)


def flagai_form(case: Case, folder: Path, name: str) -> Any:
    """config.json and pytorch_model.bin in `folder`/`name`."""
    reference = make_reference(case, folder / "made")
    directory = folder / name
    directory.mkdir()
    torch.save(reference.state_dict(), directory / "pytorch_model.bin")
    (directory / "config.json").write_text((folder / "made" / "config.json").read_text())
    return reference


@torch.inference_mode()
def test_from_pretrain_reads_a_folder_of_folders(tmp_path: Path) -> None:
    reference = flagai_form(find("gpt2"), tmp_path, "GPT2-base-ch")
    model = GPT2Model.from_pretrain(download_path=str(tmp_path), model_name="GPT2-base-ch")
    ids = torch.tensor([[7, 8, 9]])
    assert torch.allclose(model(input_ids=ids)["logits"], reference(ids).logits, atol=TOLERANCE)
    assert type(model) is GPT2Model is models.GPT2Model
    with pytest.raises(ConfigError, match=r"nowhere has no config.json: nothing is downloaded, so put"):
        GPT2Model.from_pretrain(download_path=tmp_path, model_name="nowhere")


def test_a_config_without_architecture_is_the_class_s_own(tmp_path: Path) -> None:
    flagai_form(find("llama"), tmp_path, "m")
    path = tmp_path / "m" / "config.json"
    values = json.loads(path.read_text())
    del values["architectures"], values["model_type"]
    path.write_text(json.dumps(values))
    assert LlamaModel.from_pretrain(tmp_path, "m").family == "llama"
    with pytest.raises(ConfigError, match="not supported"):
        BaseModel.from_pretrain(tmp_path, "m")


def test_another_family_s_class_is_refused(tmp_path: Path) -> None:
    make_reference(find("gpt2"), tmp_path)
    with pytest.raises(ConfigError, match=r"is a gpt2; OPTModel is for opt: use BaseModel"):
        OPTModel.from_pretrained(tmp_path)


def test_init_from_json(tmp_path: Path) -> None:
    make_reference(find("gpt2"), tmp_path / "made")
    file = tmp_path / "config.json"
    file.write_text((tmp_path / "made" / "config.json").read_text())
    model = GPT2Model.init_from_json(config_file=str(file), checkpoint_activations=True, n_layer=2, embd_pdrop=0.0)
    assert (model.config["n_layer"], len(model.module.blocks)) == (2, 2)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert float(model.module.blocks[0].attention_norm.weight.min()) == 1.0
    assert float(model.module.blocks[1].feed_forward.up.bias.abs().max()) == 0.0
    assert float(model.module.embedding.weight.std()) == pytest.approx(0.02, rel=0.05)
    same, other = (GPT2Model.init_from_json(file, n_layer=2, seed=seed).module.embedding.weight for seed in (0, 1))
    assert torch.equal(same, model.module.embedding.weight) and not torch.equal(other, same)
    model.save_pretrained(tmp_path / "saved")
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved").eval()
    assert reference.config.n_layer == 2
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.allclose(reference(ids).logits, model(input_ids=ids)["logits"], atol=1e-5)


@pytest.mark.parametrize("family", ["gemma", "olmoe", "falcon", "qwen3", "olmo2"])
def test_init_from_json_of_other_packings(family: str, tmp_path: Path) -> None:
    """A norm kept as a difference from 1 begins at 1 too; stacked experts and grouped projections have their shapes."""
    make_reference(find(family), tmp_path)
    model = BaseModel.init_from_json(tmp_path / "config.json")
    norms = [value for name, value in model.module.named_parameters() if "norm" in name and name.endswith("weight")]
    assert norms and all(bool((value == 1).all()) for value in norms)
    assert torch.isfinite(model(input_ids=[[1, 2, 3]])["logits"]).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_layers": 2}, "GPT2Model has no n_layers to override.*did you mean n_layer"),
        ({"n_head": 7}, "n_embd"),
        ({"initializer_range": "x"}, "initializer_range"),
        ({"n_layer": "two"}, "n_layer"),
    ],
)
def test_wrong_overrides(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_reference(find("gpt2"), tmp_path)
    with pytest.raises(ConfigError, match=message):
        GPT2Model.init_from_json(tmp_path / "config.json", **overrides)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs input_ids"),
        ({"input_ids": [[1.5]]}, "whole numbers"),
        ({"input_ids": [[1, 128]]}, "holds 128, outside the vocabulary of 128"),
        ({"input_ids": [[1, -1]]}, "holds -1"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask has the shape"),
        ({"input_ids": [[1, 2]], "position_ids": [[0, 1, 2]]}, "position_ids have the shape"),
        ({"input_ids": [[1] * 65]}, "position 64: the model knows 0 to 63"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "labels have the shape"),
    ],
)
def test_wrong_inputs(inputs: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_reference(find("gpt2"), tmp_path)
    model = GPT2Model.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        model(**inputs)


def test_names_of_models() -> None:
    assert LlamaModel.record.families == ("llama",)
    with pytest.raises(AttributeError, match="did you mean GPT2Model"):
        models.GPT2Modell  # noqa: B018
    assert "BertForSequenceLabeling" in dir(models)
