"""Answers in a form: the demo model, which knows nothing of JSON, and a model that knows nothing at all, are held to grammars."""

import json
import re

import jsonschema
import numpy as np
import pytest

from flatlm.cli import main
from flatlm.errors import RuntimeFileError
from flatlm.generative import grammars
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generate import generate, joined, stream
from flatlm.generative.generation_config import GenerationConfig, Grammar
from flatlm.generative.grammars import constrain, require_valid
from flatlm.generative.runner import Runner
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from flatlm.utilities.tokenizing.vocabulary import Vocabulary
from tests.utilities.tokenizing.made_tokenizers import bpe_with_bytes, llama_like

SCHEMAS = {
    "enum": {"enum": ["red", "green", 3, None, {"a": []}]},
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "home": {
                "type": "object",
                "properties": {"street": {"type": "string", "maxLength": 8}, "number": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["number"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "home"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"enum": ["é", 'b"c', "\n"]}, "minItems": 2, "maxItems": 4},
    "number": {"type": "number", "minimum": -2.5, "maximum": 7},
    "either": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]},
}
REGEX = r"[A-Z][a-z]{2,6} [0-9]{4}(-[0-9][0-9]){2}"
CHOICES = ["yes", "no", 'may "be"', "a\nb\\n", "é", "</s>", "yes, really"]
ODD = 7  # ids of padding


class Noise:
    """A runner whose logits are random, of a vocabulary that is padded. It likes what no grammar asks for best."""

    file = None
    cache_length = 10_000

    def __init__(self, vocabulary, seed):
        self.vocab_size = len(vocabulary.tokens) + ODD
        self.position = 0
        self._random = np.random.default_rng(seed)

    def require_left_to_right(self):
        pass

    def require_room(self, count):
        pass

    def reading(self, ids):
        return iter(())

    def step(self, token):
        logits = self._random.standard_normal(self.vocab_size).astype(np.float32)
        logits[-ODD:] += 100
        return logits


@pytest.fixture(scope="module")
def demo(demo_bundle):
    with Runner.open(demo_bundle, threads=1) as runner:
        yield runner, file_tokenizer(demo_bundle, None)


@pytest.fixture(scope="module", params=["bpe_with_bytes", "llama_like", "sentencepiece"])
def tokenizer(request, shared):
    if request.param == "sentencepiece":
        return Tokenizer.load(shared / "checkpoints" / "stories260K" / "tokenizer.model")
    return Tokenizer.from_bytes("hf", {"bpe_with_bytes": bpe_with_bytes, "llama_like": llama_like}[request.param]().to_str().encode())


def by_noise(tokenizer, grammar, seed, **options):
    config = GenerationConfig(**{"max_new_tokens": 800, "grammar": grammar} | options)
    return joined(stream(Noise(tokenizer.vocabulary, seed), tokenizer, [5], config), [5])


def check(schema, text):
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_the_demo_model_writes_what_a_schema_allows(demo, name, temperature):
    runner, tokenizer = demo
    config = GenerationConfig(
        max_new_tokens=300, temperature=temperature, seed=3, grammar=Grammar("json_schema", json.dumps(SCHEMAS[name]))
    )
    answer = generate(runner, tokenizer, tokenizer.encode("Once upon a time"), config)
    check(SCHEMAS[name], answer.text)
    assert answer.finish_reason in ("stop", "eos")


@pytest.mark.parametrize("name", SCHEMAS)
def test_noise_is_held_to_a_schema_with_every_kind_of_tokenizer(tokenizer, name):
    for seed in range(6):
        answer = by_noise(tokenizer, Grammar("json_schema", json.dumps(SCHEMAS[name])), seed, temperature=float(seed % 2))
        check(SCHEMAS[name], answer.text)


def test_noise_is_held_to_an_expression_a_choice_and_a_grammar(tokenizer):
    for seed in range(12):
        assert re.fullmatch(REGEX, by_noise(tokenizer, Grammar("regex", REGEX), seed).text)
        assert by_noise(tokenizer, Grammar("choice", json.dumps(CHOICES)), seed, temperature=1.0).text in CHOICES
        lark = by_noise(tokenizer, Grammar("lark", 'start: "a" part{1,3}\npart: "-" /[0-9]{2}/'), seed).text
        assert re.fullmatch(r"a(-[0-9]{2}){1,3}", lark)
        whole = by_noise(tokenizer, Grammar("json_object"), seed, max_new_tokens=60)
        assert whole.text.startswith("{")
        assert whole.finish_reason == "length" or isinstance(json.loads(whole.text), dict)


def test_every_choice_can_be_made(tokenizer):
    made = {by_noise(tokenizer, Grammar("choice", json.dumps(["b", "a", "c"])), seed).text for seed in range(40)}
    assert made == {"a", "b", "c"}


def test_a_complete_answer_ends_the_text(demo):
    runner, tokenizer = demo
    answer = generate(runner, tokenizer, [5], GenerationConfig(grammar=Grammar("regex", "ab?c"), max_new_tokens=30))
    assert (answer.text in ("ac", "abc"), answer.finish_reason) == (True, "stop")
    cut = generate(runner, tokenizer, [5], GenerationConfig(grammar=Grammar("regex", "[a-z]{900}"), max_new_tokens=5))
    assert (len(cut.token_ids), cut.finish_reason) == (5, "length")
    stopped = generate(runner, tokenizer, [5], GenerationConfig(grammar=Grammar("regex", "[ab]{9}c"), max_new_tokens=50, stop=("c",)))
    assert (re.fullmatch("[ab]{9}", stopped.text) is not None, stopped.finish_reason) == (True, "stop")


def test_an_answer_that_may_end_ends_where_the_model_says(tokenizer):
    lengths = {len(by_noise(tokenizer, Grammar("regex", "a{3,60}"), seed, temperature=1.0).text) for seed in range(20)}
    assert min(lengths) >= 3
    endless = by_noise(tokenizer, Grammar("regex", "(a|b)+"), 0, max_new_tokens=40, ignore_eos=True)
    assert re.fullmatch("[ab]+", endless.text)


def test_whitespace_comes_to_an_end(tokenizer):
    """A model that likes spaces best still writes."""

    class Spaces(Noise):
        def step(self, token):
            logits = super().step(token)
            logits[[i for i, text in enumerate(tokenizer.vocabulary.tokens) if text and not text.strip()]] += 50
            return logits

    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    config = GenerationConfig(max_new_tokens=200, grammar=Grammar("json_schema", json.dumps(schema)))
    check(schema, joined(stream(Spaces(tokenizer.vocabulary, 0), tokenizer, [5], config), [5]).text)


def test_penalties_and_log_probabilities_go_with_grammars(tokenizer):
    answer = by_noise(tokenizer, Grammar("regex", "(ab){6}"), 0, presence_penalty=2.0, repetition_penalty=1.5, logprobs=2)
    assert answer.text == "ab" * 6
    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(told.top[0].token_id >= len(tokenizer.vocabulary.tokens) for told in answer.logprobs)  # the model's own favourites


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("json_schema", "{"), r"grammar \(json_schema\): the schema is no JSON object"),
        (Grammar("json_schema", '{"type": "strin"}'), "Invalid type: strin"),
        (Grammar("json_schema", '{"not": {}}'), 'Unimplemented keys: ."not".'),
        (Grammar("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), r"grammar \(json_schema\): "),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("regex", r"a(?=b)"), r"grammar \(regex\): .*look"),
        (Grammar("lark", "start: other"), r"grammar \(lark\): .*other"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(demo, grammar, said):
    runner, tokenizer = demo
    for refuse in (lambda: require_valid(grammar), lambda: constrain(grammar, tokenizer, runner.vocab_size)):
        with pytest.raises(RuntimeFileError, match=said) as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_what_can_be_compiled_is_valid():
    for grammar in (
        *(Grammar("json_schema", json.dumps(schema)) for schema in SCHEMAS.values()),
        Grammar("json_object"),
        Grammar("regex", "a*"),
    ):
        require_valid(grammar)
    require_valid(Grammar("choice", json.dumps(CHOICES)))


def take(grammar, tokenizer, token, times):
    """The same token, again and again."""
    begun = constrain(grammar, tokenizer, tokenizer.vocab_size)
    for _ in range(times):
        begun.allowed()
        begun.accept(token)


def test_a_grammar_that_can_be_read_in_too_many_ways_is_given_up(demo):
    _, tokenizer = demo
    (letter,) = tokenizer.vocabulary.spell("a")
    with pytest.raises(RuntimeFileError, match="Too many items"):
        take(Grammar("lark", "start: e\ne: e e | e e e | A\nA: /[a-z]/"), tokenizer, letter, 150)
    take(Grammar("lark", "start: e\ne: e A | A\nA: /[a-z]/"), tokenizer, letter, 400)  # one way alone


def test_a_large_schema_is_no_such_grammar(demo):
    """200 fields, of 60 kinds that refer to each other, 40 fields each."""
    _, tokenizer = demo
    fields = [
        {"type": "string", "maxLength": 200},
        {"type": "string", "format": "date-time"},
        {"type": "integer", "minimum": -1000, "maximum": 99999},
        {"enum": [f"value {place}" for place in range(100)]},
        {"type": "string", "pattern": "^[a-z]{1,20}(-[0-9]{2}){0,5}$"},
        {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/K7"}, {"$ref": "#/$defs/K8"}]},
        {"type": "array", "items": {"$ref": "#/$defs/K9"}, "maxItems": 20},
    ]
    kinds = {
        f"K{kind}": {
            "type": "object",
            "properties": {f"field_{place}": fields[(kind + place) % len(fields)] for place in range(40)},
            "additionalProperties": False,
        }
        for kind in range(60)
    }
    names = [f"name_{place}" for place in range(200)]
    properties = {name: {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/K{place % 60}"}]} for place, name in enumerate(names)}
    schema = {"$defs": kinds, "type": "object", "properties": properties, "required": names[::2], "additionalProperties": False}
    begun = constrain(Grammar("json_schema", json.dumps(schema)), tokenizer, tokenizer.vocab_size)
    random = np.random.default_rng(1)
    for _ in range(300):
        begun.accept(int(random.choice(np.flatnonzero(begun.allowed()))))


def test_what_the_vocabulary_cannot_write_is_said():
    class Few:
        eos_ids = ()
        vocabulary = Vocabulary((b"a", b"b"), frozenset(), lambda text: [])

    with pytest.raises(RuntimeFileError, match="asks for what the vocabulary has no token for"):
        constrain(Grammar("regex", "xyz"), Few(), 5).allowed()
    constraint = constrain(Grammar("regex", "ab"), Few(), 5)
    assert constraint.allowed().tolist() == [True, False, False, False, False]
    constraint.accept(0)
    constraint.accept(1)
    assert constraint.done
    with pytest.raises(RuntimeFileError, match="cannot be followed"):
        constrain(Grammar("regex", "ab"), Few(), 5).accept(1)


def test_a_tokenizer_whose_bytes_are_not_known_is_refused(shared):
    class Words:
        eos_ids = (0,)
        vocabulary = Vocabulary((b"a",), frozenset(), lambda text: [], exact=False)

    with pytest.raises(RuntimeFileError, match="no grammar can be kept"):
        constrain(Grammar("json_object"), Words(), 5)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(grammars, "find_spec", lambda name: None)
    with pytest.raises(RuntimeFileError, match=r"pip install flatlm\[serve\]"):
        require_valid(Grammar("json_object"))
    assert "llguidance" not in vars(grammars)


def test_the_command_line_takes_a_schema_and_an_expression(demo_bundle, tmp_path, capsys):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMAS["nested"]))
    asked = ["generate", str(demo_bundle), "--prompt", "Once", "--max-new-tokens", "200", "--threads", "1"]
    assert main([*asked, "--json-schema", str(schema), "--json"]) == 0
    check(SCHEMAS["nested"], json.loads(capsys.readouterr().out)["text"])
    assert main([*asked, "--regex", "[0-9]{3}"]) == 0
    assert re.fullmatch(r"Once[0-9]{3}\n", capsys.readouterr().out)
    schema.write_bytes(b"\xff")
    assert main([*asked, "--json-schema", str(schema)]) == 2
    assert "schema.json is not UTF-8 text" in capsys.readouterr().err
    assert main([*asked, "--json-schema", str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file" in capsys.readouterr().err
    assert main([*asked, "--regex", "("]) == 2
    assert "unclosed group" in capsys.readouterr().err
