"""Tokens as bytes, against what the tokenizers themselves decode."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from flatlm.utilities.tokenizing.vocabulary import ByteDecoder, Vocabulary, byte_letters
from tests.utilities.tokenizing.made_tokenizers import TEXTS, bpe_with_bytes

EXACT = ("bpe_with_bytes", "unigram", "llama_like", "sentencepiece")
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", EXACT)
def test_a_texts_tokens_are_its_bytes(loaded: dict[str, Tokenizer], name: str) -> None:
    tokenizer = loaded[name]
    assert tokenizer.vocabulary.exact
    assert len(tokenizer.vocabulary.tokens) == tokenizer.vocab_size
    for text in TEXTS:
        ids = tokenizer.encode(text)
        read = b"".join(tokenizer.vocabulary.token_bytes(i) for i in ids if i not in tokenizer.vocabulary.special).decode()
        assert read.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")  # the first space may be the tokenizer's


@relaxed
@given(data=st.data(), name=st.sampled_from(EXACT))
def test_tokens_in_any_order_are_their_bytes(loaded: dict[str, Tokenizer], data: st.DataObject, name: str) -> None:
    """After a token that begins the text, so that no leading space is at stake."""
    tokenizer = loaded[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=12))
    first = tokenizer.encode("a", add_special_tokens=False)
    decoder = ByteDecoder(tokenizer.vocabulary)
    pieces = [*map(decoder.push, ids), decoder.finish()]
    read = b"".join(tokenizer.vocabulary.token_bytes(i) for i in ids if i not in tokenizer.vocabulary.special)
    assert "".join(pieces) == read.decode(errors="replace")
    if "\ufffd" not in "".join(pieces):  # decoders differ in how many they write
        assert tokenizer.decode([*first, *ids]) == tokenizer.decode(first) + "".join(pieces)


def test_special_tokens_are_no_text(loaded: dict[str, Tokenizer]) -> None:
    for name in ("llama_like", "sentencepiece"):
        vocabulary = loaded[name].vocabulary
        assert {0, 1, 2} <= vocabulary.special
        assert (vocabulary.text(1), vocabulary.token_bytes(len(vocabulary.tokens)), vocabulary.token_bytes(-1)) == ("<s>", b"", b"")


def test_a_tokenizer_whose_texts_are_not_its_tokens_says_so(loaded: dict[str, Tokenizer]) -> None:
    assert not loaded["word_piece"].vocabulary.exact


def test_half_characters_wait_for_the_rest(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["llama_like"]
    halves = [token for token in tokenizer.encode("é", add_special_tokens=False) if len(tokenizer.vocabulary.tokens[token]) == 1][-2:]
    decoder = ByteDecoder(tokenizer.vocabulary)
    assert [decoder.push(halves[0]), decoder.push(1), decoder.push(halves[1]), decoder.finish()] == ["", "", "é", ""]
    assert [decoder.push(halves[0]), decoder.finish()] == ["", "\ufffd"]


def test_the_letters_of_bytes_are_the_librarys() -> None:
    assert sorted(byte_letters()) == sorted(bpe_with_bytes().pre_tokenizer.alphabet())
    assert sorted(byte_letters().values()) == list(range(256))
    decode = bpe_with_bytes().decoder.decode
    assert all(decode([letter]) == chr(byte) for letter, byte in byte_letters().items() if byte < 0x80)


@pytest.mark.parametrize("name", ["bpe_with_bytes", "llama_like", "sentencepiece"])
@relaxed
@given(text=st.text(min_size=1, max_size=20) | st.sampled_from([text for text in TEXTS if text]))
def test_any_text_can_be_spelt(loaded: dict[str, Tokenizer], name: str, text: str) -> None:
    vocabulary = loaded[name].vocabulary
    ids = vocabulary.spell(text)
    assert not vocabulary.special.intersection(ids)
    assert b"".join(map(vocabulary.token_bytes, ids)) == text.encode()


def test_a_text_is_spelt_as_the_tokenizer_has_it_or_with_the_fewest_tokens() -> None:
    tokens = (b"<s>", b"a", b"ab", b"bc", b"c", b"abc", b"")
    own = Vocabulary(tokens, frozenset([0, 6]), lambda text: [2, 4])
    assert own.spell("abc") == [2, 4]
    assert own.spell("abca") == [5, 1]  # what the tokenizer says is not this text
    assert Vocabulary(tokens[:5], frozenset([0]), lambda text: []).spell("abc") == [1, 3]  # not by the longest first
    assert Vocabulary(tokens, frozenset([0]), lambda text: [0, 5]).spell("abc") == [5]
    named = Vocabulary((b"<s>", b"<", b"s", b">"), frozenset([0]), lambda text: [0])
    assert named.spell("<s>") == [1, 2, 3]  # a text, not the special token of that name
    with pytest.raises(TokenizerError, match="has no tokens for 'abx'"):
        own.spell("abx")
