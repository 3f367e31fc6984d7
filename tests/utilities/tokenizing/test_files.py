"""What a tokenizer's files say, and what is wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.settings import AddedToken, read_settings
from flatlm.utilities.tokenizing.tokenizer import Tokenizer, TokenizerSettings
from tests.utilities.tokenizing.made_tokenizers import LLAMA_CONFIG, MAKERS, directory_of, pieces


@pytest.mark.parametrize(
    ("files", "bos", "eos"),
    [
        ({}, None, ()),
        ({"config": {"eos_token_id": 7, "bos_token_id": 5}}, 5, (7,)),
        ({"config": {"eos_token_id": [7, 8]}}, None, (7, 8)),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [9, 8]}}, None, (9, 8)),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": None}}, None, (7,)),
        ({"config": {"text_config": {"eos_token_id": 7, "bos_token_id": 0}}}, 0, (7,)),
        ({"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}, "config": {"eos_token_id": 0, "bos_token_id": 0}}, 1, (0, 2)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}, "generation_config": {"eos_token_id": [3, 2]}}, None, (3, 2)),
        ({"tokenizer_config": {"eos_token": None}}, None, ()),
    ],
)
def test_ends_of_text(tmp_path: Path, made: dict[str, str], files: dict[str, Any], bos: int | None, eos: tuple[int, ...]) -> None:
    tokenizer = Tokenizer.load(directory_of(tmp_path, made["llama_like"], **files))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)


def test_a_file_is_as_good_as_its_directory(tmp_path: Path, made: dict[str, str]) -> None:
    directory = directory_of(tmp_path, made["llama_like"], LLAMA_CONFIG)
    (directory / "tokenizer.json").rename(directory / "other.json")
    tokenizer = Tokenizer.load(str(directory / "other.json"))
    assert (tokenizer.source, tokenizer.eos_ids) == (directory / "other.json", (2,))


def test_from_bytes_with_settings(made: dict[str, str]) -> None:
    chosen = TokenizerSettings(
        special_tokens={"eos_token": AddedToken("on")}, eos_ids=(2,), bos_id=1, chat_template="{{ messages[0].content }}"
    )
    tokenizer = Tokenizer.from_bytes("hf", made["llama_like"].encode(), settings=chosen)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2, tokenizer.token_id("on")))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}]) == tokenizer.encode("a", add_special_tokens=False)


def test_no_path_in_a_tokenizer_file_is_followed(tmp_path: Path, made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(made["bpe_with_bytes"])
    pointers = dict.fromkeys(
        ("tokenizer_file", "vocab_file", "merges_file", "name_or_path", "chat_template_file", "special_tokens_map_file"), str(secret)
    )
    config = {**LLAMA_CONFIG, **pointers, "auto_map": {"AutoTokenizer": ["../secret.Evil", None]}, "tokenizer_class": str(secret)}
    directory = directory_of(tmp_path / "model", made["llama_like"], config, config=pointers, generation_config=pointers)
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **options: opened.append(self) or original(self, *args, **options))
    tokenizer = Tokenizer.load(directory)
    assert {path.parent for path in opened} == {directory}
    assert tokenizer.encode("Once") == Tokenizer.from_bytes("hf", made["llama_like"].encode()).encode("Once")
    template = Tokenizer.from_bytes(
        "hf", made["llama_like"].encode(), settings=TokenizerSettings(chat_template=f"{{% include '{secret}' %}}")
    )
    with pytest.raises(TokenizerError, match="the chat template refuses these messages: TypeError: no loader"):
        template.render_chat([{"role": "user", "content": "x"}])


def refusal(path: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(path)
    return str(caught.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nope").startswith(f"{tmp_path / 'nope'}: does not exist; give a directory with a tokenizer.json")
    assert (
        refusal(tmp_path)
        == f"{tmp_path}: has no tokenizer: neither tokenizer.json nor tokenizer.model; download one of them next to config.json"
    )
    (tmp_path / "tekken.json").touch()
    (tmp_path / "sentencepiece.bpe.model").touch()
    assert (
        "; tekken.json, sentencepiece.bpe.model is of a kind that FlatLM does not read: where transformers can load it, write"
        in refusal(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the tokenizers library cannot read it"),
        (b"{}", "the tokenizers library cannot read it"),
        (b"\xff", "the tokenizers library cannot read it ('utf-8' codec can't decode"),
        (
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
            "cannot read it (Token `a` out of vocabulary",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, not the tokenizer itself; run `git lfs pull`"),
    ],
)
def test_bad_tokenizer_json(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert complaint in refusal(tmp_path)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_damage_to_a_tokenizer_json_is_an_error_or_harmless(made: dict[str, str], data: st.DataObject) -> None:
    content = bytearray(made[data.draw(st.sampled_from(list(MAKERS)))].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'{}[]",:0 \xff') | st.integers(32, 126))
    try:
        tokenizer = Tokenizer.from_bytes("hf", bytes(content))
        tokenizer.decode(tokenizer.encode("Once upon a time 😀"))
    except TokenizerError:
        pass


def test_a_tokenizer_json_that_fails_in_use(made: dict[str, str]) -> None:
    broken = json.loads(made["llama_like"])
    broken["post_processor"]["special_tokens"] = {}  # which makes the library panic
    tokenizer = Tokenizer.from_bytes("hf", json.dumps(broken).encode(), source=Path("some.json"))
    with pytest.raises(
        TokenizerError, match=r"some.json: the tokenizers library cannot encode this text with it \(no entry found for key\)"
    ):
        tokenizer.encode("Once")
    unknown = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="?")).to_str().encode()
    with pytest.raises(TokenizerError, match=r"cannot encode this text with it \(WordLevel error: Missing \[UNK\]"):
        Tokenizer.from_bytes("hf", unknown).encode("b")


@pytest.mark.parametrize("content", [b"", b"junk", b"IQ== 0\nIg== 1\n"])
def test_bad_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert "tokenizer.model: is not a SentencePiece model (" in refusal(tmp_path)
    assert "write a tokenizer.json next to it" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
        ("config.json", "1", "is not a JSON object"),
        ("generation_config.json", "\xff", "is not JSON"),
        ("special_tokens_map.json", "null", "is not a JSON object"),
        ("added_tokens.json", '{"x": "y"}', "a token's id must be a number, not 'y'"),
        ("tokenizer_config.json", '{"eos_token": 2}', "eos_token must be text, or an object with its text under 'content', not 2"),
        ("tokenizer_config.json", '{"eos_token": {"text": "x"}}', "eos_token must be text"),
        ("tokenizer_config.json", '{"additional_special_tokens": "x"}', "additional_special_tokens must be a list, not 'x'"),
        ("tokenizer_config.json", '{"additional_special_tokens": [1]}', "additional_special_tokens must be text"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "added_tokens_decoder must be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "x", "y": "z"}}', "a token's id must be a number, not 'y'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"-1": "x"}}', "a token's id must be a number, not '-1'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999999999": "x"}}', "a token's id must be a number"),
        ("tokenizer_config.json", '{"chat_template": 1}', "chat_template must be text, or a list of named texts"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": {}}]}', "chat_template must be text"),
        ("chat_template.jinja", "\xff", "is not UTF-8 text"),
        (
            "config.json",
            '{"eos_token_id": "2"}',
            "eos_token_id in generation_config.json or config.json must be a number or numbers, not '2'",
        ),
        ("config.json", '{"eos_token_id": [2, true]}', "eos_token_id in generation_config.json or config.json must be"),
        ("config.json", '{"bos_token_id": []}', "bos_token_id in generation_config.json or config.json must be"),
    ],
)
def test_bad_settings(tmp_path: Path, made: dict[str, str], name: str, content: str, complaint: str) -> None:
    directory = directory_of(tmp_path, made["llama_like"])
    (directory / name).write_text(content, encoding="latin-1")
    assert refusal(directory).startswith(str(directory))
    assert complaint in refusal(directory)
    assert len(refusal(directory)) < 500


def test_files_are_bounded_and_regular(tmp_path: Path, made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = directory_of(tmp_path, made["llama_like"])
    (directory / "config.json").mkdir()
    assert refusal(directory) == f"{directory / 'config.json'}: is not a file"
    (directory / "config.json").rmdir()
    monkeypatch.setattr("flatlm.utilities.tokenizing.settings.MAX_FILE", 100)
    assert refusal(directory) == f"{directory / 'tokenizer.json'}: is larger than 100 bytes, too large for a tokenizer's file"


def test_text_that_is_not_unicode(made: dict[str, str]) -> None:
    tokenizer = Tokenizer.from_bytes("hf", made["llama_like"].encode())
    with pytest.raises(TokenizerError, match=r"the text is not valid Unicode: surrogates not allowed at character 3; pass UTF-8"):
        tokenizer.encode("abc\udcff")


def test_unknown_kind(made: dict[str, str]) -> None:
    with pytest.raises(TokenizerError, match=r"'tiktoken' is no kind of tokenizer; there are hf, sentencepiece"):
        Tokenizer.from_bytes("tiktoken", b"")  # type: ignore[arg-type]


def test_ids_beyond_the_vocabulary_decode_to_nothing(made: dict[str, str]) -> None:
    tokenizer = Tokenizer.from_bytes("hf", made["llama_like"].encode())
    ids = tokenizer.encode("on")
    for odd in (-1, tokenizer.vocab_size, 2**31, 2**40):
        assert tokenizer.decode([*ids, odd]) == "on"
        assert "".join(pieces(tokenizer, [*ids, odd])) == "on"


def test_default_settings_are_those_of_an_empty_directory(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == TokenizerSettings()


def test_importing_loads_no_heavy_library() -> None:
    heavy = "torch tokenizers sentencepiece jinja2 numpy"
    code = f"import sys, flatlm.utilities.tokenizing.tokenizer; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
