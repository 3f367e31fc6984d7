"""The tokenizer that belongs to a file, and what is said of another."""

from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import TokenizerError
from flatlm.generative import file_tokenizer as module
from flatlm.generative.file_tokenizer import file_tokenizer
from tests.utilities.tokenizing.test_older_vocabularies import sentencepiece_model


@pytest.mark.parametrize("cuts", [True, False])
def test_other_ids_may_come_from_another_cutter_of_words(tmp_path: Path, cuts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that cuts words gives other ids when jieba is installed or removed; of others that is not said."""
    options: dict[str, Any] = {"user_defined_symbols": ["▂", "▃"], "hard_vocab_limit": False}
    name = "spiece.model" if cuts else "tokenizer.model"
    (tmp_path / name).write_bytes(sentencepiece_model(vocab_size=300, character_coverage=1.0, **options))
    monkeypatch.setattr(module, "read_manifest", lambda file: {"tokenizer": "another"})
    with pytest.raises(TokenizerError, match="is the wrong tokenizer") as caught:
        file_tokenizer(Path("model.tflite"), tmp_path)
    assert ("install it or remove it" in str(caught.value)) == cuts
