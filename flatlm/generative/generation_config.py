"""How an answer is written: its length, how tokens are chosen, what ends it, what form it must have, and what is told of it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args

from flatlm.errors import RuntimeFileError

GrammarKind: TypeAlias = Literal["json_schema", "json_object", "regex", "lark", "choice"]


@dataclass(frozen=True)
class Grammar:
    """The form that an answer must have; `generative/grammars.py` holds the model to it."""

    kind: GrammarKind
    text: str = ""
    """A JSON schema, a regular expression, a Lark grammar as llguidance reads it, or a JSON list of texts to choose from.
    Not read for "json_object", which is any JSON object."""

    def __post_init__(self) -> None:
        """Raises RuntimeFileError for what is no grammar at a glance; its compiler finds the rest."""
        if self.kind not in get_args(GrammarKind):
            raise RuntimeFileError(f"grammar.kind {self.kind!r} is not possible: it is one of {', '.join(get_args(GrammarKind))}")
        if not isinstance(self.text, str):
            raise RuntimeFileError(f"grammar.text {self.text!r} is not possible: it is a text")
        if self.kind == "choice":
            self.choices()

    def choices(self) -> tuple[str, ...]:
        """The texts to choose from, of the kind "choice"."""
        try:
            found = json.loads(self.text)
        except ValueError as error:
            raise RuntimeFileError(f"grammar.text of a choice is not JSON: {error}; give a list of texts") from error
        if not isinstance(found, list) or not found or not all(isinstance(text, str) and text for text in found):
            raise RuntimeFileError("grammar.text of a choice is not possible: it is a JSON list of texts, none of them empty")
        return tuple(found)


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is written. Temperature 0 is greedy. One seed gives each prompt the same draws.

    Raises RuntimeFileError for values that are not possible, with the field's name.
    """

    max_new_tokens: int | None = 128
    """None: until the text ends, or the cache is full."""
    temperature: float = 0.0
    top_k: int | None = None
    """Draw from the k most probable tokens."""
    top_p: float | None = None
    """Then from the fewest most probable ones whose probabilities reach p."""
    min_p: float | None = None
    """Then from those that are at least so probable as this part of the most probable one's probability."""
    seed: int | None = None
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the answer has already; OpenAI's, -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken off it once for each time that the answer has it; OpenAI's, -2 to 2."""
    repetition_penalty: float = 1.0
    """What logits of tokens in the prompt and the answer are divided by, negative ones multiplied (CTRL, Keskar et al. 2019, 4.1)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens; -100 as good as forbids one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, of which they are no part."""
    logprobs: int | None = None
    """Tell each token's own log-probability, and those of the k most probable ones. None: tell none."""
    grammar: Grammar | None = None
    ignore_eos: bool = False
    """Take the token that ends a text as any other."""

    def __post_init__(self) -> None:
        for each in fields(self):
            kinds, possible, wanted = _POSSIBLE[each.name]
            value = getattr(self, each.name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or not possible(value):
                raise RuntimeFileError(f"{each.name} {value!r} is not possible: it is {wanted}")

    def given(self, *names: str) -> list[str]:
        """Those of these fields that are not as by default."""
        plain = GenerationConfig()
        return [name for name in names if getattr(self, name) != getattr(plain, name)]


_INT, _FLOAT = (Integral, NoneType), (Real,)  # numpy's too


def _from(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    """Finite, and not outside; or None, where that is of the field's types."""
    return lambda value: value is None or (math.isfinite(value) and least <= value <= most)


def _is_bias(value: Mapping[Any, Any]) -> bool:
    return all(type(token) is int and token >= 0 and isinstance(bias, _FLOAT) and math.isfinite(bias) for token, bias in value.items())


_POSSIBLE: Mapping[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "max_new_tokens": (_INT, _from(0), "0 or more, or None"),
    "temperature": (_FLOAT, _from(0), "0 (always the most probable token) or more"),
    "top_k": (_INT, _from(1), "1 or more, or None"),
    "top_p": ((*_FLOAT, NoneType), lambda p: p is None or 0 < p <= 1, "above 0, and at most 1, or None"),
    "min_p": ((*_FLOAT, NoneType), _from(0, 1), "0 to 1, or None"),
    "seed": (_INT, _from(0), "0 or more, or None"),
    "presence_penalty": (_FLOAT, _from(-2, 2), "-2 to 2"),
    "frequency_penalty": (_FLOAT, _from(-2, 2), "-2 to 2"),
    "repetition_penalty": (_FLOAT, lambda theta: math.isfinite(theta) and theta > 0, "above 0, and 1 for none"),
    "logit_bias": ((Mapping,), _is_bias, "a finite number for each of some tokens' ids"),
    "stop": ((tuple,), lambda stops: all(isinstance(stop, str) and stop for stop in stops), "a tuple of texts, none of them empty"),
    "logprobs": (_INT, _from(0), "0 or more, or None"),
    "grammar": ((Grammar, NoneType), lambda _: True, "a Grammar, or None"),
    "ignore_eos": ((bool,), lambda _: True, "True or False"),
}
"""Of each field: its types, whether a value of them is possible, and what is, in words."""
