"""Encoders with a decoder called by keyword give what transformers gives, and survive a round trip."""

from pathlib import Path

import pytest
import torch
import transformers

from flatlm import AutoLoader
from flatlm.errors import ConfigError
from flatlm.tasks.base_model import BaseModel
from flatlm.tasks.models import T5Model
from flatlm.tasks.runner import open_task
from tests.examples.cases.encoder_decoders import CASES
from tests.examples.references import Case, make_reference
from tests.tasks.made import save_tokenizer

ONE_OF_EACH = list({case.family: case for case in reversed(CASES)}.values())


def texts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 60, (2, 9), generator=generator)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.randint(5, 60, (2, 7), generator=generator)}


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
@torch.inference_mode()
def test_forward_is_transformers(case: Case, tmp_path: Path) -> None:
    reference = make_reference(case, tmp_path)
    labels = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(3))
    labels[1, 5:] = -100
    model = BaseModel.from_pretrained(tmp_path)
    got = model(**texts(), labels=labels, output_attentions=False)
    expected = reference(**texts(), labels=labels, output_hidden_states=True)
    assert float(expected.logits.std()) > 0.1
    assert float((got["logits"] - expected.logits).abs().max()) <= 1e-4
    assert float(got["loss"]) == pytest.approx(float(expected.loss), abs=1e-5)
    for mine, others in (("hidden_states", expected.decoder_hidden_states), ("encoder_hidden_states", expected.encoder_hidden_states)):
        assert len(got[mine]) == len(others)
        for place, (state, other) in enumerate(zip(got[mine], others, strict=True)):
            real = slice(None) if mine == "hidden_states" else texts()["attention_mask"].bool()
            assert float((state - other)[real].abs().max()) <= 1e-4, (mine, place)
    if case.family != "mt5":  # whose head and vocabulary are as T5's
        shifted = model(input_ids=texts()["input_ids"], attention_mask=texts()["attention_mask"], labels=labels)
        others = reference(input_ids=texts()["input_ids"], attention_mask=texts()["attention_mask"], labels=labels)
        assert float(shifted["loss"]) == pytest.approx(float(others.loss), abs=1e-5)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_round_trip(case: Case, tmp_path: Path) -> None:
    reference = make_reference(case, tmp_path / "first")
    model = BaseModel.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    again = BaseModel.from_pretrained(tmp_path / "second")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    loaded = getattr(transformers, case.reference).from_pretrained(tmp_path / "second").eval()
    with torch.inference_mode():
        assert torch.allclose(loaded(**texts()).logits, reference(**texts()).logits, atol=1e-6)


def test_init_from_json_and_wrong_inputs(tmp_path: Path) -> None:
    make_reference(next(case for case in CASES if case.name == "v1_1"), tmp_path / "made")
    (tmp_path / "config.json").write_text((tmp_path / "made" / "config.json").read_text())  # no weights beside it
    model = T5Model.init_from_json(tmp_path / "config.json")
    assert model(**texts())["logits"].shape[:2] == (2, 7)
    with pytest.raises(ConfigError, match="decoder_input_ids or labels"):
        model(input_ids=[[1, 2]])
    with pytest.raises(ConfigError, match="at most 1024"):
        model(input_ids=[[1] * 1025], labels=[[1]])
    with pytest.raises(ConfigError, match="2 texts"):
        model(input_ids=[[1, 2], [3, 4]], decoder_input_ids=[[1, 2]])


def test_seq2seq_writes_what_transformers_does(tmp_path: Path) -> None:
    reference = make_reference(next(case for case in CASES if case.family == "t5"), tmp_path / "T5-base-ch", decided=True)
    save_tokenizer(tmp_path / "T5-base-ch")
    loader = AutoLoader("seq2seq", "T5-base-ch", tmp_path)
    options = {"prefill_lengths": (16,), "kv_cache_len": 24}
    loader.export(tmp_path / "t5.tflite", recipe="none", verify=False, **options)
    with loader.runner(tmp_path / "t5.tflite", threads=1) as runner:
        found = runner.predict("the cat sat", prompt="title of {text} .", max_new_tokens=10)
        assert open_task(tmp_path / "t5.tflite", tokenizer=loader.directory).task.name == "lm"
    expected = reference.generate(torch.tensor([found.prompt_token_ids]), max_new_tokens=10, do_sample=False)[0, 1:].tolist()
    assert list(found.token_ids) == [token for token in expected if token != 1]  # the token that ends a text is not part of it
    with pytest.raises(ConfigError, match="of the kind encoder-decoder; it can do lm, seq2seq, title-generation, poetry"):
        AutoLoader("ner", "T5-base-ch", tmp_path)
