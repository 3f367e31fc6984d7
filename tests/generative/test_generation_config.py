import math
import pickle

import numpy as np
import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig, Grammar


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", -1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", [1]),
        ("stop", "END"),
        ("stop", ("",)),
        ("stop", (1,)),
        ("logprobs", -1),
        ("logprobs", True),
        ("grammar", "regex"),
        ("ignore_eos", 1),
    ],
)
def test_what_is_not_possible_is_named(name, value):
    with pytest.raises(RuntimeFileError, match=rf"^{name} .* is not possible: it is "):
        GenerationConfig(**{name: value})


def test_the_bounds_themselves_are_possible():
    GenerationConfig(0, 0, 1, 1, 0, 0, -2, 2, 1e-3, {0: -100}, ("\n",), 0, Grammar("json_object"), True)
    GenerationConfig(None, np.float32(0.5), np.int64(3), np.float32(0.5), 1.0)


def test_it_goes_to_another_process():
    config = GenerationConfig(logit_bias={3: -1.0}, stop=("a",), grammar=Grammar("regex", "a+"))
    assert pickle.loads(pickle.dumps(config)) == config


def test_what_is_not_as_by_default_is_named():
    assert GenerationConfig(stop=("a",), top_k=3).given("stop", "grammar", "logprobs") == ["stop"]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("ebnf", "", "grammar.kind 'ebnf' is not possible: it is one of json_schema, json_object, regex, lark, choice"),
        ("regex", None, "grammar.text None is not possible"),
        ("choice", "yes", "grammar.text of a choice is not JSON"),
        ("choice", "[]", "it is a JSON list of texts, none of them empty"),
        ("choice", '"yes"', "it is a JSON list of texts"),
        ("choice", '["yes", 1]', "it is a JSON list of texts"),
        ("choice", '["yes", ""]', "none of them empty"),
    ],
)
def test_what_is_no_grammar_is_named(kind, text, said):
    with pytest.raises(RuntimeFileError, match=said):
        Grammar(kind, text)
