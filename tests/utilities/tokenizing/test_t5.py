"""T5's SentencePiece model without a tokenizer.json, against transformers."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.tokenizing.made_tokenizers import CORPUS, TEXTS

MORE = ["translate English to German: Once <extra_id_0> a <extra_id_1>.", "<extra_id_99>", "Summarize:\n\n a  dog"]


@pytest.fixture(scope="module")
def spiece() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=120,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    return model.getvalue()


def checkpoint(folder: Path, spiece: bytes, model_type: str = "t5", **config: Any) -> Path:
    (folder / "spiece.model").write_bytes(spiece)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("config", [{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}, {"tokenizer_class": "T5Tokenizer"}])
def test_ids_are_transformers(config: dict[str, Any], spiece: bytes, tmp_path: Path) -> None:
    ours = Tokenizer.load(checkpoint(tmp_path, spiece, **config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *MORE]:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.encode("a dog")[-1] == 1 and ours.eos_ids == (1,)
    for sentinel in ("<extra_id_0>", "<extra_id_57>", "<extra_id_99>"):
        assert ours.token_id(sentinel) == theirs.convert_tokens_to_ids(sentinel)
    ids = ours.encode("Once upon a <extra_id_0> there was")
    assert ours.decode(ids) == "Once upon a there was"
    assert ours.vocab_size == len(theirs)


def test_the_models_type_is_enough(spiece: bytes, tmp_path: Path) -> None:
    assert Tokenizer.load(checkpoint(tmp_path, spiece, "mt5")).encode("a dog")[-1] == 1


@pytest.mark.parametrize(
    ("model_type", "config", "problem"),
    [
        ("xlnet", {}, "has no tokenizer"),
        ("t5", {"tokenizer_class": "AlbertTokenizer"}, "has no tokenizer"),
        ("t5", {"extra_ids": "many"}, "extra_ids must be a whole number, not 'many'"),
    ],
)
def test_others_are_not_read_as_its(model_type: str, config: dict[str, Any], problem: str, spiece: bytes, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=problem):
        Tokenizer.load(checkpoint(tmp_path, spiece, model_type, **config))


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"spiece\.model: is not a SentencePiece model"):
        Tokenizer.load(checkpoint(tmp_path, b"nothing"))
