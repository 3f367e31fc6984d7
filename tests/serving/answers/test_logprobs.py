"""Probabilities, as they are told, of tokens that are made here."""

import numpy as np

from flatlm.generative.generate import Piece
from flatlm.generative.logprobs import token_logprob
from flatlm.serving.answers.logprobs import chat_logprobs
from flatlm.utilities.tokenizing.vocabulary import Vocabulary


def test_the_bytes_of_parts_of_characters_are_their_own() -> None:
    """Of the token, and of the others that were probable: their text is U+FFFD, which has bytes of its own."""
    vocabulary = Vocabulary((b"\xf0\x9f", b"\x98\x80", b"a"), frozenset(), lambda text: [])
    found = token_logprob(np.array([1.0, 3.0, 2.0], np.float32), 0, 3, vocabulary)
    (told,) = chat_logprobs([Piece("", 0, logprob=found)])["content"]
    assert (told["token"], told["bytes"]) == ("\ufffd", [0xF0, 0x9F])
    assert [top["bytes"] for top in told["top_logprobs"]] == [[0x98, 0x80], [ord("a")], [0xF0, 0x9F]]
    assert told["top_logprobs"][-1]["logprob"] == told["logprob"]
