"""The tokenizer in a GGUF file's metadata gives the ids of the original."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.gguf import read_tokenizer
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.checkpoints.gguf_models import write_gguf
from tests.utilities.tokenizing.made_tokenizers import TEXTS, bpe_with_bytes

MORE = [
    "x1234567 12 9",
    "It's WE'LL I'M",
    "a\n\n  b\t\tc",
    "foo(bar)[0]+=$1.50`~^|",
    "Ünïcödé ВСЁ ok",
    "don't  2³ ½",
    "\u00a0nbsp",
    "ABCdefGHI",
]


def write(path: Path, **keys: Any) -> Path:
    metadata = {f"tokenizer.ggml.{key}" if key != "chat_template" else f"tokenizer.{key}": value for key, value in keys.items()}
    return write_gguf(path, {"general.architecture": "llama", **metadata}, {})


def sentencepiece_keys(model: Path) -> dict[str, Any]:
    """As llama.cpp's converter reads a SentencePiece model."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = range(pieces.get_piece_size())
    types = [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1 for i in ids]
    tokens = [pieces.id_to_piece(i) for i in ids]
    return {"model": "llama", "tokens": tokens, "scores": [pieces.get_score(i) for i in ids], "token_type": types} | {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "remove_extra_whitespaces": True,
    }


def bpe_keys(pre: str) -> dict[str, Any]:
    made = bpe_with_bytes()
    import json

    content = json.loads(made.to_str())
    vocabulary = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    types = [3 if token == "<|end|>" else 1 for token, _ in vocabulary]
    return {"model": "gpt2", "pre": pre, "tokens": [token for token, _ in vocabulary], "token_type": types, "merges": merges} | {
        "eos_token_id": 0
    }


def test_a_sentencepiece_vocabulary_is_the_model_again(shared: Path, tmp_path: Path) -> None:
    keys = sentencepiece_keys(shared / "checkpoints" / "stories260K" / "tokenizer.model")
    original = Tokenizer.load(shared / "checkpoints" / "stories260K" / "tokenizer.model")
    again = Tokenizer.load(write(tmp_path / "m.gguf", **keys, chat_template="{{ messages[0].content }}"))
    assert again.kind == "sentencepiece" and again.vocab_size == original.vocab_size == 512
    assert again.bos_id == 1 and again.eos_ids == (2,)
    for text in TEXTS + MORE:
        ids = again.encode(text, add_special_tokens=False)
        assert ids == original.encode(text, add_special_tokens=False), text
        assert again.decode(ids) == original.decode(ids)
        assert again.encode(text) == [1, *ids]  # llama.cpp begins with BOS where nothing is said
    assert again.render_chat([{"role": "user", "content": "hi"}]) == "hi"
    quiet = Tokenizer.load(write(tmp_path / "q.gguf", **keys, add_bos_token=False, add_eos_token=True))
    assert quiet.encode("a")[-1] == 2 and quiet.encode("a")[0] != 1
    bundled = Tokenizer.from_bytes("sentencepiece", again.to_bytes())
    assert all(bundled.encode(text, add_special_tokens=False) == again.encode(text, add_special_tokens=False) for text in TEXTS)


def test_user_defined_spaces_scores_and_prefix(tmp_path: Path) -> None:
    """Gemma's runs of spaces are written as spaces; some converters write one score for all."""
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "   ", "<turn>"]
    keys = {"model": "llama", "tokens": tokens, "scores": [-1000.0] * 10, "token_type": [2, 3, 3, 1, 1, 1, 1, 1, 4, 3]}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "eot_token_id": 9, "unknown_token_id": 0, "add_space_prefix": False}
    tokenizer = Tokenizer.load(write(tmp_path / "m.gguf", **keys, **ids))
    assert tokenizer.encode("ab ab   ab<turn>", add_special_tokens=False) == [6, 7, 8, 6, 9]
    assert tokenizer.eos_ids == (2, 9) and tokenizer.decode([6, 7, 8, 6, 9]) == "ab ab   ab"


def test_bytes_and_merges_are_the_tokenizer_again(tmp_path: Path) -> None:
    original = bpe_with_bytes()
    again = Tokenizer.load(write(tmp_path / "m.gguf", **bpe_keys("gpt-2")))
    assert again.kind == "hf" and again.eos_ids == (0,)
    for text in TEXTS + MORE + ["a<|end|>b"]:
        ids = again.encode(text)
        assert ids == original.encode(text).ids, text
        assert again.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("pre", ["llama-bpe", "dbrx", "qwen2", "tekken", "gpt-4o", "llama4", "deepseek-r1-qwen"])
def test_words_are_cut_as_transformers_cuts_them(pre: str, tmp_path: Path) -> None:
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    path = write(tmp_path / "m.gguf", **bpe_keys(pre))
    ours = tokenizers.Tokenizer.from_str(read_tokenizer(path)[1].decode())
    architecture, content, _ = get_gguf_tokenizer(str(path))
    theirs, _ = convert_gguf_tokenizer(architecture, content)
    for text in TEXTS + MORE:
        assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text), text


@pytest.mark.parametrize(
    ("pre", "steps"),
    [
        ("starcoder", [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ("phi-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        (
            "falcon",
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(tokenizers.Regex("[0-9][0-9][0-9]"), "isolated"),
            ],
        ),
    ],
)
def test_words_are_cut_as_the_originals_cut_them(pre: str, steps: list[Any], tmp_path: Path) -> None:
    ours = tokenizers.Tokenizer.from_str(read_tokenizer(write(tmp_path / "m.gguf", **bpe_keys(pre)))[1].decode()).pre_tokenizer
    theirs = pre_tokenizers.Sequence(steps)
    for text in TEXTS + MORE:
        assert [word for word, _ in ours.pre_tokenize_str(text)] == [word for word, _ in theirs.pre_tokenize_str(text)], text


def test_bos_and_whole_words(tmp_path: Path) -> None:
    keys = bpe_keys("llama-bpe")
    first = len(keys["tokens"])
    keys["tokens"] += ["<|begin|>", "zqzq", "<think>"]
    keys["token_type"] += [3, 1, 4]
    tokenizer = Tokenizer.load(write(tmp_path / "m.gguf", **keys, bos_token_id=first))
    assert tokenizer.encode("zqzq") == [first, first + 1]  # Llama 3 begins with BOS, and takes a word that is a token whole
    assert tokenizer.encode("<think><|begin|>", add_special_tokens=False) == [first + 2, first]
    assert tokenizer.decode([first + 2, first, first + 1]) == "<think>zqzq"
    assert tokenizer.encode("zqzq<|end|>", add_special_tokens=False) == [first + 1, 0]
    again = Tokenizer.load(write(tmp_path / "n.gguf", **keys, bos_token_id=first, add_bos_token=False))
    assert again.encode("zqzq") == [first + 1]


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    for keys, what in (
        ({}, "has no tokenizer"),
        ({"model": "bert", "tokens": ["a"]}, "of the kind 'bert', which FlatLM does not read"),
        (bpe_keys("viking"), "pre is 'viking', whose rule FlatLM does not know; it knows dbrx, deepseek-r1-qwen, falcon"),
        (bpe_keys("") | {"merges": 7}, "tokenizer.ggml.pre is 'default'"),
        (bpe_keys("qwen2") | {"merges": 7}, "merges is not a list of texts"),
        ({"model": "llama", "tokens": ["a", "b"], "scores": [1.0]}, "scores is not a number for each of 2 tokens"),
        ({"model": "llama", "tokens": ["a", "b"]}, "is not a SentencePiece model"),
        (bpe_keys("qwen2") | {"merges": ["zz yy"]}, "the tokenizers library cannot read it"),
    ):
        with pytest.raises(TokenizerError, match=what.replace(".", r"\.")) as caught:
            Tokenizer.load(write(tmp_path / "m.gguf", **keys))
        assert str(tmp_path / "m.gguf") in str(caught.value)
