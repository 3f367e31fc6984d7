"""The tokenizer: the same ids and text as transformers, from every kind of file."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from flatlm.utilities.tokenizing.settings import AddedToken
from flatlm.utilities.tokenizing.tokenizer import Tokenizer, TokenizerSettings
from tests.utilities.tokenizing.made_tokenizers import (
    CORPUS,
    LLAMA_CONFIG,
    MAKERS,
    TEXTS,
    agrees,
    copy_of,
    directory_of,
    reference,
)


@pytest.mark.parametrize("name", ["stories260K", "llama_i192"])
def test_trained_checkpoints(shared: Path, name: str) -> None:
    directory = shared / "checkpoints" / name
    tokenizer = agrees(directory)
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 407, 261, 378]) == "Once upon a time"
    assert (tokenizer.kind, tokenizer.source, tokenizer.vocab_size) == ("hf", directory / "tokenizer.json", 512)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (1, (2,), None)
    assert tokenizer.token_id("</s>") == 2
    assert tokenizer.token_id("nothing such") is None


@pytest.mark.parametrize("name", ["bart_g2p_us", "gpt2_nano_sort"])
def test_other_trained_checkpoints(shared: Path, name: str) -> None:
    agrees(shared / "checkpoints" / name)


@pytest.mark.parametrize("name", MAKERS)
def test_kinds_of_tokenizer_json(tmp_path: Path, made: dict[str, str], name: str) -> None:
    agrees(directory_of(tmp_path, made[name], {"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_add_bos_token_is_not_heeded_beside_a_tokenizer_json(tmp_path: Path, made: dict[str, str], add_bos_token: bool) -> None:
    config = {**LLAMA_CONFIG, "add_bos_token": add_bos_token, "add_eos_token": True}
    assert agrees(directory_of(tmp_path, made["llama_like"], config)).encode("a")[0] == 1
    without = json.loads(made["llama_like"]) | {"post_processor": None}
    assert agrees(directory_of(tmp_path, json.dumps(without), config)).encode("a")[0] != 1


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("prefix", [None, False])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_llama_tokenizer(tmp_path: Path, made: dict[str, str], legacy: bool | None, prefix: bool | None, model_type: str) -> None:
    config = {**LLAMA_CONFIG, "tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    config |= {} if prefix is None else {"add_prefix_space": prefix}
    tokenizer = agrees(directory_of(tmp_path / "with_config", made["llama_like"], config, config={"model_type": model_type}))
    plain = agrees(directory_of(tmp_path / "plain", made["llama_like"], LLAMA_CONFIG))
    assert (tokenizer.encode("a</s>b") == plain.encode("a</s>b")) == (model_type == "mistral" or (legacy is True and prefix is None))


def test_llama_tokenizer_of_bytes(tmp_path: Path, made: dict[str, str]) -> None:
    config = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|end|>"}
    agrees(directory_of(tmp_path, made["bpe_with_bytes"], config, config={"model_type": "llama"}))


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
        {
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True, "rstrip": True},
            "extra_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        {"eos_token": "time", "pad_token": "upon"},
        {"image_token": "girl", "extra_special_tokens": {"audio_token": "little"}, "add_prefix_token": False},
        {"split_special_tokens": True, "eos_token": "<|end|>"},
        {
            "added_tokens_decoder": {
                "401": {"content": "<|im_end|>", "special": False, "normalized": True, "lstrip": True},
                "400": {"content": "<|im_start|>", "special": True, "rstrip": True},
                "402": {"content": "girl", "special": False, "single_word": True},
            },
            "bos_token": "<|im_end|>",
            "eos_token": "<|end|>",
        },
        {"added_tokens_decoder": {"0": {"content": "<|end|>", "special": False, "normalized": False}}},
    ],
)
def test_special_and_added_tokens(tmp_path: Path, made: dict[str, str], config: dict[str, Any]) -> None:
    directory = directory_of(tmp_path, made["bpe_with_bytes"], {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    tokenizer = agrees(directory, [*TEXTS, "x <|im_start|> y <|im_end|> z girl girls <|end|>"])
    special = reference(directory).all_special_ids
    assert tokenizer.decode([*special, *tokenizer.encode("dog")]) == "dog"


def test_named_tokens_keep_the_flags_of_the_file(tmp_path: Path, made: dict[str, str]) -> None:
    flagged = json.loads(made["bpe_with_bytes"])
    flagged["added_tokens"][0] |= {"lstrip": True, "rstrip": True}
    directory = directory_of(tmp_path, json.dumps(flagged), {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    assert agrees(directory, [*TEXTS, "x <|end|> y"]).decode(Tokenizer.load(directory).encode("x <|end|> y")) == "xy"


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_in_normalized_text(tmp_path: Path, made: dict[str, str], normalized: bool) -> None:
    config = {**LLAMA_CONFIG, "added_tokens_decoder": {"300": {"content": "n a", "special": False, "normalized": normalized}}}
    tokenizer = agrees(directory_of(tmp_path, made["llama_like"], config), [*TEXTS, "n a", "upon a time", "ti n▁a"])
    assert (tokenizer.token_id("n a") in tokenizer.encode("ti n▁a")) == normalized


def test_special_tokens_map_serves_where_added_tokens_are_not_listed(tmp_path: Path, made: dict[str, str]) -> None:
    extra = {"eos_token": {"content": "<|im_end|>", "lstrip": True}, "bos_token": "<|end|>"}
    files = {"special_tokens_map": extra, "added_tokens": {"<|im_end|>": 401, "<|im_start|>": 400}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "time"}
    tokenizer = agrees(directory_of(tmp_path / "1", made["bpe_with_bytes"], config, **files))
    assert tokenizer.eos_ids == (tokenizer.token_id("<|im_end|>"),)
    tokenizer = agrees(directory_of(tmp_path / "2", made["bpe_with_bytes"], {**config, "added_tokens_decoder": {}}, **files))
    assert tokenizer.eos_ids == (tokenizer.token_id("time"),)


def test_truncation_and_padding_of_the_file_are_not_heeded(tmp_path: Path, made: dict[str, str]) -> None:
    limited = tokenizers.Tokenizer.from_str(made["llama_like"])
    limited.enable_truncation(3)
    limited.enable_padding(length=50, pad_token="<unk>")
    tokenizer = agrees(directory_of(tmp_path, limited.to_str(), LLAMA_CONFIG))
    assert len(tokenizer.encode("Once upon")) == 9


# ------------------------------------------------------------------------------------------------------------------- sentencepiece


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        ({"add_bos_token": True}, TEXTS),
        ({"add_bos_token": True, "add_eos_token": True, "legacy": False}, TEXTS),
        ({"legacy": True}, TEXTS),
        ({"add_bos_token": False}, TEXTS),
        ({}, TEXTS),
    ],
)
def test_sentencepiece_alone(shared: Path, tmp_path: Path, config: dict[str, Any], texts: list[str]) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config}
    original = shared / "checkpoints" / "stories260K"
    directory = copy_of(original, tmp_path / "model", ["tokenizer.model", "config.json"], config)
    # SentencePiece normalizes spaces as this model was trained to have them; what transformers makes of the same file does not.
    tokenizer = agrees(
        directory,
        [
            text
            for text in texts
            if " ".join(text.split(" ")) == text.strip() and "  " not in text and "> " not in text and " <" not in text
        ],
    )
    assert (tokenizer.kind, tokenizer.vocab_size) == ("sentencepiece", 512)
    assert tokenizer.to_bytes() == (original / "tokenizer.model").read_bytes()
    assert (tokenizer.encode("Once")[0] == 1) == config.get("add_bos_token", False)
    assert (tokenizer.encode("Once")[-1] == 2) == config.get("add_eos_token", False)
    json_ids = Tokenizer.load(original).encode
    for text in ("Once upon a time", "  two", "trailing ", "a  b   c", "é 😀 中文"):
        assert tokenizer.encode(text, add_special_tokens=False) == json_ids(text, add_special_tokens=False)


def test_text_with_its_special_tokens(shared: Path, tmp_path: Path) -> None:
    original = shared / "checkpoints" / "stories260K"
    ids = [1, 403, 407, 2, 2, 261, 0]
    tokenizer = Tokenizer.load(original)
    assert tokenizer.decode(ids, skip_special_tokens=False) == reference(original).decode(ids)
    assert tokenizer.decode(ids) == reference(original).decode(ids, skip_special_tokens=True)
    alone = Tokenizer.load(copy_of(original, tmp_path / "model", ["tokenizer.model"]))
    assert alone.decode([*ids, 9999], skip_special_tokens=False) == "<s>Once upon</s></s>a<unk>"
    assert alone.decode(ids) == "Once upon a"


def test_sentencepiece_without_any_settings(shared: Path, tmp_path: Path) -> None:
    directory = copy_of(shared / "checkpoints" / "stories260K", tmp_path / "model", ["tokenizer.model"])
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.source == directory / "tokenizer.model"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 0, 407, 2, 9999, -1]) == "Once upon"
    assert tokenizer.token_id("<s>") == 1
    assert tokenizer.token_id("nothing such") is None


def test_sentencepiece_with_added_tokens(shared: Path) -> None:
    data = (shared / "checkpoints" / "stories260K" / "tokenizer.model").read_bytes()
    added = TokenizerSettings(
        special_tokens={"eos_token": AddedToken("<|im_end|>")},
        added_tokens=(AddedToken("<|im", 510), AddedToken("<|im_start|>", 512), AddedToken("<|im_end|>", 513), AddedToken("<|im_", 514)),
        add_eos=True,
        eos_ids=(2,),
    )
    tokenizer = Tokenizer.from_bytes("sentencepiece", data, settings=added)
    assert tokenizer.encode("<|im_start|>Once<|im_end|>") == [512, 441, 416, 331, 513, 513]
    assert (tokenizer.eos_ids, tokenizer.vocab_size) == ((2, 513), 515)
    assert tokenizer.decode([512, 403, 513]) == "Once"
    whole = TokenizerSettings(**{**vars(added), "split_special_tokens": True})
    assert 512 not in Tokenizer.from_bytes("sentencepiece", data, settings=whole).encode("<|im_start|>Once")


def test_sentencepiece_named_tokens(shared: Path) -> None:
    data = (shared / "checkpoints" / "stories260K" / "tokenizer.model").read_bytes()
    assert Tokenizer.from_bytes("sentencepiece", data, settings=TokenizerSettings(add_bos=True)).encode("Once") == [1, 403]
    assert Tokenizer.from_bytes("sentencepiece", data, settings=TokenizerSettings(add_eos=True)).encode("Once") == [403, 2]
    named = TokenizerSettings(
        special_tokens={"bos_token": AddedToken("▁time"), "eos_token": AddedToken("nothing such")}, add_bos=True, add_eos=True
    )
    tokenizer = Tokenizer.from_bytes("sentencepiece", data, settings=named)
    time = tokenizer.token_id("▁time")
    assert time is not None and time > 2
    assert tokenizer.encode("Once▁time") == [time, 403, time]
    assert tokenizer.decode([403, time]) == "Once"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (time, ())


@pytest.fixture(scope="session")
def exact_spaces() -> bytes:
    """A SentencePiece model like Llama 2's, which leaves the spaces of a text as they are."""
    import sentencepiece

    model = io.BytesIO()
    options = {
        "vocab_size": 320,
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, minloglevel=2, **options)
    return model.getvalue()


def test_sentencepiece_spaces(exact_spaces: bytes) -> None:
    plain = Tokenizer.from_bytes("sentencepiece", exact_spaces)
    for text in ("a dog", "  a  dog ", "a\ndog", "\n", " ", ""):
        assert plain.decode(plain.encode(text)) == text
    assert plain.decode(plain.encode("a</s> a")) == "a a"
    bare = Tokenizer.from_bytes("sentencepiece", exact_spaces, settings=TokenizerSettings(prefix="never"))
    assert bare.encode("a") == plain.encode("a")[1:] or len(bare.encode("a")) == 1
    assert bare.decode(plain.encode("a")) == " a"
    always = Tokenizer.from_bytes("sentencepiece", exact_spaces, settings=TokenizerSettings(prefix="always"))
    assert always.encode("a</s>a") == [*plain.encode("a"), 2, *plain.encode("a")]
    assert plain.encode("a</s>a") == [*plain.encode("a"), 2, *bare.encode("a")]
