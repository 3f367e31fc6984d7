"""Text from ids as they come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.tokenizing.made_tokenizers import MAKERS, pieces

KINDS = [*MAKERS, "sentencepiece"]


def test_characters_arrive_whole(loaded: dict[str, Tokenizer]) -> None:
    for name in ("bpe_with_bytes", "llama_like", "sentencepiece"):
        tokenizer, text = loaded[name], "a é 😀 中 ậ b"
        arrived = pieces(tokenizer, tokenizer.encode(text))
        assert "".join(arrived) == text
        assert not any("\ufffd" in piece for piece in arrived), name
        assert sum(piece != "" for piece in arrived) > 5


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_pieces_join_to_the_whole(loaded: dict[str, Tokenizer], name: str, data: st.DataObject) -> None:
    tokenizer = loaded[name]
    size = tokenizer.vocab_size
    ids = data.draw(st.lists(st.integers(0, size + 1), max_size=200) | st.text(max_size=80).map(tokenizer.encode))
    arrived = pieces(tokenizer, ids)
    assert "".join(arrived) == tokenizer.decode(ids)
    cut = data.draw(st.integers(0, len(ids)))
    if name != "word_piece" or cut:
        before = tokenizer.decode(ids[:cut])
        if tokenizer.decode(ids).startswith(before) and not before.endswith("\ufffd"):
            assert before + "".join(pieces(tokenizer, ids[cut:], ids[:cut])) == tokenizer.decode(ids)


def test_pieces_come_at_once(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["llama_like"]
    assert pieces(tokenizer, tokenizer.encode("on a ti")) == ["", "", "on", " a", " ", "ti", ""]
    euro = [3 + byte for byte in "€".encode()]
    assert pieces(tokenizer, [*euro, *euro, 1, tokenizer.encode("on")[2]]) == ["", "", "", "", "", "", "", "€€on", ""]
    assert pieces(tokenizer, [*euro[:2]]) == ["", "", "\ufffd\ufffd"]
    by_bytes = loaded["bpe_with_bytes"]
    ids = by_bytes.encode("€!")
    assert pieces(by_bytes, ids) == ["", "", "€", "!", ""]


def test_a_context_keeps_the_leading_space(loaded: dict[str, Tokenizer]) -> None:
    for name in ("llama_like", "sentencepiece"):
        tokenizer = loaded[name]
        prompt = tokenizer.encode("Once upon")
        rest = tokenizer.encode("Once upon a time")[len(prompt) :]
        assert "".join(pieces(tokenizer, rest)) == "a time"
        assert "".join(pieces(tokenizer, rest, prompt)) == " a time"
        assert "".join(pieces(tokenizer, rest, prompt * 100)) == " a time"


@pytest.mark.parametrize("name", KINDS)
def test_a_context_may_end_within_a_character(loaded: dict[str, Tokenizer], name: str) -> None:
    tokenizer, text = loaded[name], "a € b😀c " * 40 + "a"
    ids = tokenizer.encode(text)
    for cut in range(len(ids)):
        before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert before + "".join(pieces(tokenizer, ids[cut:], ids[:cut])) == tokenizer.decode(ids), cut


def test_long_streams_do_not_decode_everything_again(loaded: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loaded["llama_like"]
    ids = tokenizer.encode("Once é a time 😀 " * 100)
    longest = 0
    decode = tokenizer._backend.decode

    def counted(some: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(some))
        return decode(some)

    monkeypatch.setattr(tokenizer._backend, "decode", counted)
    arrived = "".join(pieces(tokenizer, ids))
    assert longest < 100 < len(ids)
    assert arrived == decode(ids)
    stream, longest = tokenizer.stream_decoder(ids), 0
    assert stream.push(tokenizer.encode("on")[2]) == "on"
    assert longest < 100


@pytest.mark.parametrize("name", ["llama_like", "bpe_with_bytes", "sentencepiece"])
def test_tokens_that_are_certain_are_not_decoded_each(loaded: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tokenizer, calls = loaded[name], 0
    ids = tokenizer.encode("on a time " * 100)
    whole, decode = tokenizer.decode(ids), tokenizer._backend.decode

    def counted(some: list[int]) -> str:
        nonlocal calls
        calls += 1
        return decode(some)

    monkeypatch.setattr(tokenizer._backend, "decode", counted)
    assert "".join(pieces(tokenizer, ids)) == whole
    assert calls < len(ids) / 2
