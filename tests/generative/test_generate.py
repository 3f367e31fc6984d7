import numpy as np
import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.generate import Piece, generate, joined, stream
from flatlm.generative.generation_config import GenerationConfig
from tests.generative.toy_model import EOS, S, V


def greedy(toy, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(toy.reference(ids)[-1].argmax()))
    return ids[len(prompt) :]


class Planned:
    """A sampler that says what it was told to."""

    def __init__(self, *tokens):
        self._tokens = iter(tokens)

    def pick(self, logits, allowed=None):
        return next(self._tokens)

    def accept(self, token):
        pass


def written(runner, letters, prompt, *tokens, **options):
    """What is told when these tokens are picked."""
    runner.reset()
    return joined(stream(runner, letters, prompt, GenerationConfig(**{"max_new_tokens": None} | options), sampler=Planned(*tokens)), prompt)


def test_greedy_text_is_the_reference_models(runner, toy, letters, random_ids):
    prompt = random_ids(9)
    expected = greedy(toy, prompt, 20)
    assert EOS not in expected
    generation = generate(runner, letters, prompt, GenerationConfig(max_new_tokens=20))
    assert list(generation.token_ids) == expected
    assert generation.prompt_token_ids == tuple(prompt)
    assert generation.text == letters.decode(expected)
    assert generation.finish_reason == "length"
    assert generate(runner, letters, prompt, GenerationConfig(max_new_tokens=20)) == generation  # it begins a new text each time


def test_the_decoder_is_told_the_prompt(runner, letters, monkeypatch):
    """Whether an answer begins with a space depends on it."""
    told = []
    decoder = letters.stream_decoder
    monkeypatch.setattr(letters, "stream_decoder", lambda context: told.append(tuple(context)) or decoder())
    generate(runner, letters, [1, 2], GenerationConfig(max_new_tokens=1))
    runner.rewind(1)
    list(stream(runner, letters, [1, 3, 4], GenerationConfig(max_new_tokens=1), held=1))
    assert told == [(1, 2), (1, 3, 4)]


def test_what_the_runner_holds_of_a_prompt_is_not_read_again(runner, toy, letters, random_ids):
    prompt = random_ids(S - 2)
    expected = greedy(toy, prompt, 1)
    for held in (5, len(prompt) - 1):
        runner.reset()
        runner.prefill(prompt[:held])
        pieces = list(stream(runner, letters, prompt, GenerationConfig(max_new_tokens=1), held=held))
        assert [piece.token_id for piece in pieces if piece.token_id is not None] == expected
        assert runner.position == len(prompt)


def test_pieces_come_one_by_one(runner, letters):
    pieces = stream(runner, letters, [1, 2], GenerationConfig(max_new_tokens=3), sampler=Planned(10, 11, 12))
    assert next(pieces) == Piece("", None)  # the prompt was read, but for its last token
    assert runner.position == 1
    assert next(pieces) == Piece("", 10)
    assert runner.position == 2
    assert list(pieces) == [Piece("+", 11, begins=0), Piece(",", 12, begins=1), Piece("-", None, "length")]
    assert runner.position == 4  # the last token is not in the cache


def test_the_end_is_not_part_of_the_text(runner, letters):
    generation = written(runner, letters, [1], 10, EOS, 11)
    assert (generation.token_ids, generation.text, generation.finish_reason) == ((10,), "+", "eos")
    assert written(runner, letters, [1], EOS).token_ids == ()


def test_the_stop_that_ended_the_text_is_told(runner, letters):
    texts = [letters.decode([token]) for token in (5, 6)]

    def last(*stops):
        runner.reset()
        return list(stream(runner, letters, [3], GenerationConfig(stop=stops, max_new_tokens=2), sampler=Planned(5, 6)))[-1]

    assert (last("never", texts[1]).stop, last("never", texts[1]).finish_reason) == (texts[1], "stop")
    assert last("never").stop is None


@pytest.mark.parametrize("length", [1, S - 3, S - 1, S])
def test_a_full_context_ends_the_text(runner, letters, random_ids, length):
    generation = written(runner, letters, random_ids(length), *[10] * S)
    # The token after the last slot can still be told, though not read.
    assert len(generation.token_ids) == S - length + 1
    assert generation.finish_reason == "context"


def test_length_goes_before_context(runner, letters, random_ids):
    assert written(runner, letters, random_ids(S), 10, max_new_tokens=1).finish_reason == "length"


def test_a_prompt_that_does_not_fit_is_not_begun(runner, letters, random_ids):
    with pytest.raises(RuntimeFileError, match=f"{S + 1} tokens do not fit"):
        generate(runner, letters, random_ids(S + 1), GenerationConfig())
    assert runner.position == 0


def test_stream_goes_on_where_the_runner_is(runner, toy, letters, random_ids):
    ids = random_ids(12)
    runner.prefill(ids[:5])
    tokens = [piece.token_id for piece in stream(runner, letters, ids[5:], GenerationConfig(max_new_tokens=4))]
    assert [token for token in tokens if token is not None] == greedy(toy, ids, 4)


def test_nothing_asked_for(runner, letters):
    generation = generate(runner, letters, [1, 2], GenerationConfig(max_new_tokens=0))
    assert (generation.token_ids, generation.text, generation.finish_reason) == ((), "", "length")


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [([], 1, "no tokens"), ([1], -1, "max_new_tokens -1 is"), ([V], 1, "outside its vocabulary")],
)
def test_impossible_requests(runner, letters, prompt, count, message):
    with pytest.raises(RuntimeFileError, match=message):
        generate(runner, letters, prompt, GenerationConfig(max_new_tokens=count))


def test_seeded_sampling_repeats(runner, letters, random_ids):
    prompt = np.array(random_ids(6))  # an array does too
    configs = [GenerationConfig(max_new_tokens=25, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    texts = [generate(runner, letters, prompt, config).text for config in configs]
    assert texts[0] == texts[1] != texts[2]


def of(text):
    """The tokens of letters."""
    return [ord(letter) - 33 for letter in text]


@pytest.mark.parametrize(
    ("answer", "stop", "text", "made"),
    [
        ("ABCDEF", ("CD",), "AB", 5),  # the letters come one token late
        ("ABCDEF", ("X", "DEF"), "ABC", 6),  # found at the end only, where the decoder gives its last letter
        ("ABCDEF", ("BCX", "EF1"), "ABCDEF", 6),  # held back, and no stop after all
        ("ABCDEF", ("BCDE", "CD"), "AB", 5),
        ("AAAB", ("AAB",), "A", 4),
    ],
)
def test_a_stop_string_ends_the_text_before_it(runner, letters, answer, stop, text, made):
    generation = written(runner, letters, [1], *of(answer), max_new_tokens=len(answer), stop=stop)
    assert (generation.text, len(generation.token_ids)) == (text, made)
    assert generation.finish_reason == ("length" if text == answer else "stop")


def test_no_piece_holds_what_may_become_a_stop(runner, letters):
    config = GenerationConfig(max_new_tokens=6, stop=("CDX",))
    texts = [piece.text for piece in stream(runner, letters, [1], config, sampler=Planned(*of("ABCDEF")))]
    assert texts == ["", "A", "B", "", "", "CDE", "F"]


def test_a_stop_leaves_the_last_token_unread(runner, letters):
    generation = written(runner, letters, [1, 2], *of("ABCDEF"), max_new_tokens=6, stop=("B",))
    assert (len(generation.token_ids), runner.position) == (3, 4)


def test_the_end_may_be_taken_as_any_token(runner, letters):
    generation = written(runner, letters, [1], EOS, 11, EOS, max_new_tokens=3, ignore_eos=True)
    assert (generation.token_ids, generation.finish_reason) == ((EOS, 11, EOS), "length")


def test_log_probabilities_are_the_models_own(runner, toy, letters, random_ids):
    """Whatever the temperature, the penalties and the bias."""
    prompt = random_ids(6)
    config = GenerationConfig(max_new_tokens=8, temperature=1.7, seed=3, presence_penalty=1.0, logit_bias={20: 3.0}, logprobs=4)
    generation = generate(runner, letters, prompt, config)
    assert [told.token_id for told in generation.logprobs] == list(generation.token_ids)
    text = list(prompt)
    for told in generation.logprobs:
        logits = toy.reference(text)[-1].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert told.logprob == pytest.approx(expected[told.token_id], abs=1e-4)
        assert (told.text, told.bytes) == (chr(33 + told.token_id), bytes([33 + told.token_id]))
        best = np.argsort(-expected)[:4]
        assert [each.token_id for each in told.top] == best.tolist()
        assert [each.logprob for each in told.top] == pytest.approx(expected[best].tolist(), abs=1e-4)
        assert [each.text for each in told.top] == [chr(33 + token) for token in best]
        assert [each.bytes for each in told.top] == [bytes([33 + token]) for token in best]
        text.append(told.token_id)
    own = generate(runner, letters, prompt, GenerationConfig(max_new_tokens=1, logprobs=0))
    assert own.logprobs[0].top == ()
    assert generate(runner, letters, prompt, GenerationConfig(max_new_tokens=1)).logprobs is None
    assert generate(runner, letters, prompt, GenerationConfig(max_new_tokens=0, logprobs=1)).logprobs is None


def test_a_bias_forbids_and_forces_tokens(runner, letters, random_ids):
    plain = generate(runner, letters, random_ids(6), GenerationConfig(max_new_tokens=1))
    forbidden = GenerationConfig(max_new_tokens=12, logit_bias=dict.fromkeys(plain.token_ids, -100.0))
    assert not set(generate(runner, letters, random_ids(6), forbidden).token_ids) & set(plain.token_ids)
    assert set(generate(runner, letters, random_ids(6), GenerationConfig(max_new_tokens=5, logit_bias={30: 100})).token_ids) == {30}
    with pytest.raises(RuntimeFileError, match=f"logit_bias names token {V}, and the model's vocabulary has {V}"):
        generate(runner, letters, [1], GenerationConfig(logit_bias={V: 1.0}))
