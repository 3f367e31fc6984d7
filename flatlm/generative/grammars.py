"""Holds an answer to a grammar: which tokens may come next, by the llguidance library.

A grammar's compiler and each step's mask are the library's; the tokens are the tokenizer's own, as bytes, so that every kind of tokenizer
will do. Ids of the model's padding stand for nothing, and are never allowed.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from flatlm.errors import RuntimeFileError, TokenizerError
from flatlm.generative.generation_config import Grammar
from flatlm.generative.sampling import Allowed
from flatlm.utilities.tokenizing.vocabulary import Vocabulary

WHITESPACE = r" |\n {0,16}"
"""What may stand between the parts of a JSON text: enough to indent it, and not so much that a model lost in spaces never ends."""

_MOST_READINGS = 2000
"""Of the parser's items, in one step."""


class GrammarTokenizer(Protocol):
    """What is asked of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def vocabulary(self) -> Vocabulary: ...


class Constraint:
    """One answer on its way through a grammar. Use `constrain`."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size

    @property
    def done(self) -> bool:
        """Whether nothing can follow: the answer is complete."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Allowed:
        """Of each token [V], whether it may come next. The tokens that end a text may where the answer can be complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_no_error()
        allowed = np.zeros(self._size, bool)
        found = np.unpackbits(bits, count=min(self._size, 8 * len(bits)), bitorder="little")
        allowed[: len(found)] = found
        if not allowed.any():
            raise RuntimeFileError("the grammar cannot be followed any further: it asks for what the vocabulary has no token for")
        return allowed

    def accept(self, token: int) -> None:
        """The answer goes on with this token. RuntimeFileError where that is not allowed."""
        self._matcher.consume_token(token)
        self._require_no_error()

    def _require_no_error(self) -> None:
        if self._matcher.is_error():
            raise RuntimeFileError(f"the grammar cannot be followed any further: {_one_line(self._matcher.get_error())}")


def constrain(grammar: Grammar, tokenizer: GrammarTokenizer, size: int) -> Constraint:
    """A grammar's beginning, for a model whose logits are of `size` tokens.

    Raises RuntimeFileError where llguidance is not installed, for what it cannot compile, and for a tokenizer that does not say its bytes.
    """
    vocabulary = tokenizer.vocabulary
    if not vocabulary.exact:
        raise RuntimeFileError("grammar: this tokenizer's texts are not made of its tokens' bytes, so no grammar can be kept; leave it out")
    return Constraint(_matcher(grammar, vocabulary, tokenizer.eos_ids, size).deep_copy(), size)


def require_valid(grammar: Grammar) -> None:
    """Raises RuntimeFileError for what `constrain` would refuse with any tokenizer."""
    wrong, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(_compiled(grammar), limits=_limits())
    if wrong:
        raise RuntimeFileError(f"grammar ({grammar.kind}): {_one_line(messages[0])}")


@lru_cache(maxsize=32)
def _matcher(grammar: Grammar, vocabulary: Vocabulary, eos_ids: tuple[int, ...], size: int) -> Any:
    """Not begun yet."""
    matcher = _llguidance().LLMatcher(_tokenizer(vocabulary, eos_ids, size), _compiled(grammar), log_level=0, limits=_limits())
    if matcher.is_error():
        raise RuntimeFileError(f"grammar ({grammar.kind}): {_one_line(matcher.get_error())}")
    return matcher


def _limits() -> Any:
    """As they are by default, but for two: no message has the parser's whole state, and no step goes through a multitude of readings.

    A grammar with so many is ambiguous, and who takes turns with it would wait. A large schema needs about 700.
    """
    return _llguidance().LLParserLimits(verbose_errors=False, step_max_items=_MOST_READINGS)


def _compiled(grammar: Grammar) -> str:
    """As llguidance takes it. Raises RuntimeFileError for what is no JSON."""
    library = _llguidance().LLMatcher
    match grammar.kind:
        case "json_schema" | "json_object":
            schema = grammar.text if grammar.kind == "json_schema" else '{"type": "object"}'
            try:
                return str(library.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE}))
            except ValueError as error:
                raise RuntimeFileError(f"grammar ({grammar.kind}): the schema is no JSON object: {_one_line(str(error))}") from error
        case "regex":
            return str(library.grammar_from_regex(grammar.text))
        case "lark":
            return str(library.grammar_from_lark(grammar.text))
        case "choice":
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in grammar.choices())
            return str(library.grammar_from_lark(f"start: {texts}"))


@lru_cache(maxsize=4)
def _tokenizer(vocabulary: Vocabulary, eos_ids: tuple[int, ...], size: int) -> Any:
    """The vocabulary as llguidance has it. A text without a token that ends it gets one beyond the model's, which is never picked."""
    library = _llguidance()
    ends = [token for token in eos_ids if token < size] or [size]
    return library.LLTokenizer(library.TokenizerWrapper(_Tokens(vocabulary, ends, size)), eos_token=ends)


class _Tokens:
    """A vocabulary with the names by which llguidance asks."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, ends: Sequence[int], size: int) -> None:
        self.tokens = [b"" if i in vocabulary.special else token for i, token in enumerate(vocabulary.tokens[:size])]
        self._none = size + 1  # beyond the model's vocabulary, as is the end of texts that have none
        self.tokens += [b""] * (self._none + 1 - len(self.tokens))
        for end in ends:
            self.tokens[end] = b"<end of text>"
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted({*ends, *(i for i in vocabulary.special if i < size)})
        self._vocabulary = vocabulary

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text that the grammar leaves no choice about. They must be it exactly, since no others are allowed then."""
        try:
            return self._vocabulary.spell(text if isinstance(text, str) else text.decode())
        except TokenizerError:
            return [self._none]


def _llguidance() -> Any:
    if find_spec("llguidance") is None:
        raise RuntimeFileError("grammars need the llguidance library, which is not installed: pip install flatlm[serve]")
    import llguidance

    return llguidance


def _one_line(message: str) -> str:
    return " ".join(message.replace("<non-verbose/>", "").split())
