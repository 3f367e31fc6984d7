"""Where tokens are in their text, and what pairs of texts become: as transformers says it."""

from pathlib import Path

import pytest
import transformers
from tokenizers import processors

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.tokenizing.made_tokenizers import word_piece

TEXTS = ["Once upon a time", "  Déjà  vu, 中文 😀!", "", "Spot!"]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    made = word_piece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("pair", [None, "the dog's name"])
@pytest.mark.parametrize("text", TEXTS)
def test_places_are_transformers(text: str, pair: str | None, bert: Path) -> None:
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bert / "tokenizer.json"))
    expected = reference(text, pair, return_offsets_mapping=True, return_token_type_ids=True)
    got = Tokenizer.load(bert).encode_text(text, pair)
    assert list(got.ids) == expected["input_ids"]
    assert list(got.type_ids) == expected["token_type_ids"]
    assert list(got.offsets) == expected["offset_mapping"]
    assert list(got.sequence) == expected.sequence_ids()
    if pair is None:
        assert got.framed == ((1, 1) if text else (2, 0))


def test_places_of_a_sentencepiece_model(shared: Path, tmp_path: Path) -> None:
    source = shared / "checkpoints" / "stories260K" / "tokenizer.model"
    tokenizer = Tokenizer.load(source)
    text = "Once upon a time, 中文"
    got = tokenizer.encode_text(text)
    assert list(got.ids) == tokenizer.encode(text)
    assert "".join(text[start:end] for (start, end), which in zip(got.offsets, got.sequence, strict=True) if which == 0) == text
    assert tokenizer.encode_text("a", "b").sequence.count(1) == len(tokenizer.encode("b", add_special_tokens=False))
    with pytest.raises(TokenizerError, match="not known"):
        tokenizer.encode_text("a </s> b")


def test_text_that_is_none(bert: Path) -> None:
    with pytest.raises(TokenizerError, match="not valid Unicode"):
        Tokenizer.load(bert).encode_text("a", "\ud800")
