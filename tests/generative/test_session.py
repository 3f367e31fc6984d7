"""One text across turns, against runners that read every prompt from its beginning."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.convert.signatures import signature_specs
from flatlm.errors import RuntimeFileError
from flatlm.generative.generate import generate, joined
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.session import Session
from tests.generative.toy_model import EOS, Letters, S, V
from tests.models import export_fast, random_decoder, tiny_config

LONG = GenerationConfig(max_new_tokens=None)
token = st.integers(EOS + 1, V - 1)
turns = st.lists(
    st.tuples(st.integers(0, S), st.lists(token, min_size=1, max_size=12), st.integers(0, 6), st.integers(0, 8)), min_size=1, max_size=5
)
"""Of each turn: how much of the last text its prompt keeps, what follows that, the tokens to make, the pieces to take."""


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose first layer keeps a ring: it sees 8 tokens, of a context of S."""
    model = random_decoder(tiny_config(window=8, vocab=V), cache_length=S, longest_step=4)
    return export_fast(model, signature_specs((4,), prefill_logits=False), tmp_path_factory.mktemp("ring") / "a.tflite")


@pytest.fixture(scope="module", params=["tiny_file", "windowed"])
def pair(request: pytest.FixtureRequest):
    """A session, and a runner of the same file that knows nothing of it."""
    file = request.getfixturevalue(request.param)
    with Runner.open(file, threads=1) as runner, Runner.open(file, threads=1) as fresh:
        yield Session(runner, Letters()), fresh


class Counted:
    """A runner that says how many tokens it read."""

    def __init__(self, runner):
        self._runner, self.read = runner, 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def reading(self, ids):
        for used in self._runner.reading(ids):
            self.read += used
            yield used

    def step(self, token):
        self.read += 1
        return self._runner.step(token)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=turns)
def test_any_turns_through_a_session_are_what_fresh_runners_write(pair, turns):
    session, fresh = pair
    session.reset()
    text: list[int] = []
    for keep, more, make, take in turns:
        prompt = ([*text[:keep], *more])[-S:] if len(text[:keep]) + len(more) > S else [*text[:keep], *more]
        config, shared = GenerationConfig(max_new_tokens=make), session.shared(prompt)
        expected = generate(fresh, Letters(), prompt, config)
        pieces = session.stream(prompt, config)
        taken = list(islice(pieces, take))
        tokens = [piece.token_id for piece in taken if piece.token_id is not None]
        assert tokens == list(expected.token_ids)[: len(tokens)]
        pieces.close()  # whoever takes them goes away, perhaps before the end
        text = [*prompt, *tokens] if taken else text  # of which nothing is read before the first piece is asked for
        assert list(session.held) == text[: len(session.held)]
        if taken:
            assert len(session.held) >= shared
            assert (session.last.prompt_tokens, session.last.shared_tokens, session.last.new_tokens) == (len(prompt), shared, len(tokens))
        # Whatever was taken, the whole answer is the fresh runner's.
        text = [*prompt, *joined(session.stream(prompt, config), prompt).token_ids]
        assert text[len(prompt) :] == list(expected.token_ids)


def test_only_what_is_new_is_read(tiny_file, random_ids):
    with Runner.open(tiny_file, threads=1) as opened:
        runner = Counted(opened)
        session, prompt = Session(runner, Letters()), random_ids(20)
        answer = joined(session.stream(prompt, GenerationConfig(max_new_tokens=5)), prompt)
        assert (runner.read, session.last.shared_tokens) == (24, 0)
        assert session.held == (*prompt, *answer.token_ids[:-1])
        following = [*prompt, *answer.token_ids, *random_ids(3, seed=1)]
        # The last token that was made, and three more.
        assert session.shared(following) == 24
        joined(session.stream(following, GenerationConfig(max_new_tokens=1)), following)
        assert (runner.read, session.last.shared_tokens, session.last.prompt_tokens) == (28, 24, 28)
        # The same once more: its last token is read for the logits.
        assert session.shared(following) == 27
        joined(session.stream(following, GenerationConfig(max_new_tokens=1)), following)
        assert runner.read == 29
        other = [*prompt[:7], EOS + 1 if prompt[7] != EOS + 1 else EOS + 2, *prompt[8:]]
        assert session.shared(other) == 7
        joined(session.stream(other, GenerationConfig(max_new_tokens=1)), other)
        assert runner.read == 29 + 13
        assert session.shared([V - 1] * 3) == session.shared(other[:1]) == session.shared([]) == 0


def test_a_ring_that_lost_what_is_shared_is_read_anew(windowed, random_ids):
    with Runner.open(windowed, threads=1) as runner:
        session, prompt = Session(runner, Letters()), random_ids(30)
        joined(session.stream(prompt, GenerationConfig(max_new_tokens=6)), prompt)
        assert session.shared([*session.held, 20]) == len(session.held)  # going on needs nothing that is lost
        assert session.shared(prompt[:10]) == 0  # going back far does
        joined(session.stream(prompt[:10], GenerationConfig(max_new_tokens=1)), prompt[:10])
        assert session.last.shared_tokens == 0


def test_a_stream_ends_where_another_begins(tiny_file, random_ids):
    with Runner.open(tiny_file, threads=1) as runner:
        session = Session(runner, Letters())
        first, second = session.stream(random_ids(6), LONG), session.stream(random_ids(7, seed=1), LONG)
        next(first), next(first)
        next(second)
        with pytest.raises(RuntimeFileError, match="this stream has ended"):
            next(first)
        assert session.held == tuple(random_ids(7, seed=1)[:6])
        next(second)
        session.reset()
        with pytest.raises(RuntimeFileError, match="this stream has ended"):
            next(second)
        assert session.held == ()


def test_a_prompt_that_is_refused_leaves_what_was_shared(tiny_file, random_ids):
    with Runner.open(tiny_file, threads=1) as runner:
        session, prompt = Session(runner, Letters()), random_ids(9)
        joined(session.stream(prompt, GenerationConfig(max_new_tokens=2)), prompt)
        with pytest.raises(RuntimeFileError, match="do not fit"):
            list(session.stream([*prompt, *random_ids(S)], LONG))
        assert session.held == (*prompt,)
        with pytest.raises(RuntimeFileError, match="outside its vocabulary"):
            list(session.stream([*prompt[:4], V, 9], LONG))
        assert session.held == tuple(prompt[:4])
        with pytest.raises(RuntimeFileError, match="no tokens"):
            list(session.stream([], LONG))


def test_a_turn_is_timed(tiny_file, random_ids):
    with Runner.open(tiny_file, threads=1) as runner:
        session, prompt = Session(runner, Letters()), np.array(random_ids(20))  # an array does too
        assert session.last is None
        pieces = session.stream(prompt, GenerationConfig(max_new_tokens=4))
        next(pieces)
        assert (session.last.new_tokens, session.last.time_to_first_token_s, session.last.decode_s) == (0, None, 0.0)
        list(pieces)
        last = session.last
        assert 0 < last.prefill_s < last.time_to_first_token_s
        assert last.decode_s > 0
        assert (last.prompt_tokens, last.shared_tokens, last.new_tokens) == (20, 0, 4)


def test_a_session_goes_on_from_anothers_text(tiny_file, random_ids):
    with Runner.open(tiny_file, threads=1) as first, first.sibling() as second:
        session, other, prompt = Session(first, Letters()), Session(second, Letters()), random_ids(12)
        answer = joined(session.stream(prompt, GenerationConfig(max_new_tokens=6)), prompt)
        begun = other.stream(random_ids(5, seed=2), LONG)
        next(begun)
        other.adopt(session)
        assert other.held == session.held == (*prompt, *answer.token_ids[:-1])
        with pytest.raises(RuntimeFileError, match="this stream has ended"):
            next(begun)
        following = [*prompt, *answer.token_ids, 20]
        found = joined(other.stream(following, GenerationConfig(max_new_tokens=4)), following)
        assert other.last.shared_tokens == 17
        assert session.held == (*prompt, *answer.token_ids[:-1])  # which is left as it was
        assert found == joined(session.stream(following, GenerationConfig(max_new_tokens=4)), following)
        first.reset()
        assert generate(first, Letters(), following, GenerationConfig(max_new_tokens=4)) == found
