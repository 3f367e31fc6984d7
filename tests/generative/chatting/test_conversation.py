"""Conversations over the demo model: what is read again, what is kept, what happens when the context is full."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.errors import OutputError, RuntimeFileError, TextError, TokenizerError
from flatlm.generative.chatting.conversation import Conversation, Turn
from flatlm.generative.chatting.params import params_of, read_param, with_params
from flatlm.generative.chatting.saved import load_conversation, save_conversation
from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.session import Session
from flatlm.utilities.bundling import bundled_tokenizer
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.chat_files import CONTEXT

CONFIG = GenerationConfig(max_new_tokens=6, ignore_eos=True)
QUESTIONS = ["Once upon a time", "The dog", "One day", "A cat", "So"]


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> Tokenizer:
    return bundled_tokenizer(bundle)


@pytest.fixture(scope="module")
def runner(bundle: Path) -> Iterator[Runner]:
    with Runner.open(bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def talk(runner: Runner, tokenizer: Tokenizer) -> Conversation:
    return Conversation(Session(runner, tokenizer), tokenizer, config=CONFIG)


def say(talk: Conversation, question: str, stop_after: int | None = None) -> Turn:
    pieces, count = talk.answer(talk.ask(question)), 0
    for piece in pieces:
        count += piece.token_id is not None
        if count == stop_after:
            pieces.close()
    return talk.turns[-1]


def test_answers_are_the_models_own_and_only_what_is_new_is_read(talk: Conversation, bundle: Path, tokenizer: Tokenizer) -> None:
    used = 0
    for number, question in enumerate(QUESTIONS):
        asked = talk.ask(question)
        turn = say(talk, question)
        stats = turn.stats
        assert stats is not None and stats.prompt_tokens == len(asked.prompt.ids)
        assert stats.shared_tokens == used  # all that was read and written, but for the answer's last token
        with Runner.open(bundle, threads=1) as fresh:
            expected = generate(fresh, tokenizer, asked.prompt.ids, CONFIG)
        assert (turn.answer, turn.token_ids, turn.finish_reason) == (expected.text, expected.token_ids, "length")
        used = talk.context_used
        assert used == len(asked.prompt.ids) + 5
        assert [message["role"] for message in talk.messages] == ["user", "assistant"] * (number + 1)
    assert not talk.forgotten


def test_the_system_prompt_is_first_and_can_change(talk: Conversation) -> None:
    talk.system = "Be kind."
    assert talk.ask("Hi").prompt.text == "<s>S: Be kind.\nU: Hi\nA:"
    say(talk, "Hi")
    talk.system = None
    assert talk.ask("Hi").prompt.text.startswith("<s>U: Hi\nA:")
    assert talk.messages[0]["role"] == "user"


def test_who_stops_reading_keeps_what_was_written(talk: Conversation) -> None:
    whole = say(talk, "Once upon a time")
    talk.reset()
    part = say(talk, "Once upon a time", stop_after=3)
    assert (part.token_ids, part.finish_reason) == (whole.token_ids[:3], None)
    assert whole.answer.startswith(part.answer) and part.answer != whole.answer
    turn = say(talk, "The dog")
    assert turn.finish_reason == "length" and len(talk.turns) == 2
    assert part.stats is not None and turn.stats is not None
    assert turn.stats.shared_tokens == part.stats.prompt_tokens + 2  # the last of the three was not read yet


def test_what_was_stopped_before_a_token_is_no_turn(talk: Conversation) -> None:
    say(talk, "Once upon a time")
    before = list(talk.turns)
    pieces = talk.answer(talk.ask("The dog, the cat, the boy and the girl went out to play. " * 2))
    assert next(pieces).token_id is None  # the prompt is still being read
    pieces.close()
    assert talk.turns == before
    pieces = talk.answer(talk.ask_again())
    pieces.close()
    assert talk.turns == before
    assert say(talk, "The dog").finish_reason == "length"


def test_undo_and_retry(talk: Conversation) -> None:
    for again in (talk.ask_again, talk.undo):
        with pytest.raises(RuntimeFileError, match="nothing was asked yet"):
            again()
    first, second = say(talk, "Once upon a time"), say(talk, "The dog")
    talk.config = replace(CONFIG, temperature=1.5, seed=3)
    other = list(talk.answer(talk.ask_again()))
    assert talk.turns[0] == first and len(talk.turns) == 2
    assert talk.turns[1].question == "The dog" and talk.turns[1].token_ids != second.token_ids
    assert talk.session.last.shared_tokens == talk.session.last.prompt_tokens - 1
    assert "".join(piece.text for piece in other) == talk.turns[1].answer
    assert talk.undo().question == "The dog"
    talk.config = CONFIG
    assert say(talk, "The dog").token_ids == second.token_ids
    assert talk.undo() and talk.undo() and talk.turns == []
    assert say(talk, "Once upon a time").token_ids == first.token_ids


def test_a_full_context_slides(talk: Conversation) -> None:
    talk.system = "Be kind."
    slid = False
    for number in range(14):
        asked = talk.ask(f"The {number}")
        assert len(asked.prompt.ids) + 6 <= CONTEXT
        if asked.forgotten > talk.forgotten:
            slid = True
            assert CONTEXT - len(asked.prompt.ids) >= CONTEXT // 4
            assert asked.prompt.text.startswith("<s>S: Be kind.\nU: The ")
            assert "The 0\n" not in asked.prompt.text
        turn = say(talk, f"The {number}")
        assert turn.finish_reason == "length"
        assert number == 0 or talk.session.last.shared_tokens > 0  # the system prompt at least
    assert slid and 0 < talk.forgotten < len(talk.turns) == 14
    assert len(talk.messages) == 29
    while talk.turns:
        talk.undo()
        assert talk.forgotten <= len(talk.turns)
    with pytest.raises(RuntimeFileError, match=r"the question is too long: \d+ tokens, and the context has 128; shorten it"):
        talk.ask("cat " * 200)


def test_what_is_taken_back_makes_room_again(talk: Conversation) -> None:
    while not talk.forgotten:
        before = talk.context_used
        say(talk, f"The {len(talk.turns)}")
    slid, count, asked = talk.forgotten, len(talk.turns), talk.turns[-1].question
    list(talk.answer(talk.ask_again()))
    assert (talk.forgotten, len(talk.turns), talk.turns[-1].question) == (slid, count, asked)
    talk.undo()
    assert (talk.forgotten, talk.context_used) == (0, before)
    for _ in range(count - 2):
        talk.undo()
    assert "The 0\n" in talk.ask("So").prompt.text
    list(talk.answer(talk.ask_again()))
    assert (len(talk.turns), talk.forgotten) == (1, 0)


def test_one_long_turn_is_seen_when_it_is_answered_again(talk: Conversation) -> None:
    say(talk, "Once upon a time")
    say(talk, next(long for count in range(20, 128) if talk.ask(long := "cat " * count).forgotten))
    assert talk.forgotten == 1
    list(talk.answer(talk.ask_again()))
    assert talk.forgotten == 1
    talk.undo()
    assert (talk.forgotten, len(talk.turns)) == (0, 1)
    list(talk.answer(talk.ask_again()))
    assert talk.forgotten == 0
    assert "Once upon a time" in talk.ask("So").prompt.text


def test_a_conversation_that_was_loaded_holds_nothing_yet(talk: Conversation, tmp_path: Path) -> None:
    say(talk, "Once upon a time")
    save_conversation(tmp_path / "talk.json", talk)
    for reset in (False, True):
        say(talk, "The dog")
        if reset:
            talk.reset()
        load_conversation(tmp_path / "talk.json", CONFIG).put_into(talk)
        assert (talk.context_used, len(talk.turns)) == (0, 1)
        say(talk, "One day")
        assert talk.context_used == len(talk.session.held) > 0


def test_short_answers_slide_late(talk: Conversation) -> None:
    """As long as there is room for the answer that is asked for."""
    talk.config = replace(CONFIG, max_new_tokens=1)
    while not (asked := talk.ask("The dog")).forgotten:
        assert len(asked.prompt.ids) < CONTEXT
        last = len(asked.prompt.ids)
        say(talk, "The dog")
    assert last > CONTEXT - CONTEXT // 4


def test_a_full_context_stops(talk: Conversation) -> None:
    talk.when_full, talk.config = "stop", replace(CONFIG, max_new_tokens=None)
    assert say(talk, "Once upon a time").finish_reason == "context"
    before = list(talk.turns)
    with pytest.raises(RuntimeFileError, match=r"the context is full: \d+ tokens with this question, of 128; nothing more is answered"):
        talk.ask("The dog")
    assert talk.turns == before
    talk.when_full = "slide"
    asked = talk.ask("The dog")
    assert asked.forgotten == 1
    assert talk.forgotten == 0  # until it is answered
    say(talk, "The dog")
    assert talk.forgotten == 1
    talk.when_full = "stop"
    talk.reset()
    with pytest.raises(RuntimeFileError, match="the question is too long"):
        talk.ask("cat " * 200)


def test_a_refusing_template_changes_nothing(runner: Runner, tokenizer: Tokenizer) -> None:
    refuses = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}"
    talk = Conversation(Session(runner, tokenizer), tokenizer, template=refuses, config=CONFIG)
    say(talk, "Once")
    with pytest.raises(TokenizerError, match="one only"):
        talk.ask("The dog")
    assert len(talk.turns) == 1
    talk.reset()
    assert say(talk, "Once").finish_reason == "length"


def test_what_is_saved_is_loaded(talk: Conversation, tmp_path: Path) -> None:
    talk.system, talk.when_full, talk.config = 'Be "kind". é', "stop", replace(CONFIG, temperature=0.5, seed=1, stop=("x", "\n"))
    say(talk, "Once upon a time")
    say(talk, "The dog")
    messages = talk.messages
    save_conversation(tmp_path / "talk.json", talk)
    found = load_conversation(tmp_path / "talk.json", GenerationConfig())
    talk.undo()
    say(talk, "A cat")
    talk.system, talk.config, talk.when_full = None, GenerationConfig(), "slide"
    found.put_into(talk)
    assert (talk.messages, talk.when_full) == (messages, "stop")
    assert params_of(talk.config) == params_of(found.config)
    assert (talk.config.temperature, talk.config.stop) == (0.5, ("x", "\n"))
    assert talk.ask("So").prompt.text.startswith('<s>S: Be "kind". é\nU: Once upon a time\nA:')
    (tmp_path / "bare.json").write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
    bare = load_conversation(tmp_path / "bare.json", CONFIG)
    assert (bare.system, bare.turns, bare.config, bare.when_full) == (None, (Turn("a", "b"),), CONFIG, "slide")
    with pytest.raises(OutputError, match="none is not a directory: create it"):
        save_conversation(tmp_path / "none" / "talk.json", talk)


def test_what_is_no_unicode_is_not_saved(talk: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk.system = "caf\udce9"
    with pytest.raises(TextError, match=r"talk\.json is not valid Unicode: surrogates not allowed at character \d+; give UTF-8"):
        save_conversation(path, talk)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeFileError, match="stop is not valid Unicode"):
        with_params(CONFIG, {"stop": ["caf\udce9"]})


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, 'it has no list "messages"'),
        ([], 'it has no list "messages"'),
        ({"messages": {}}, 'it has no list "messages"'),
        ({"messages": [3]}, "message 1 after the system's is not one of 'user'"),
        ({"messages": [ANSWER]}, "message 1 after the system's is not one of 'user'"),
        ({"messages": [USER, USER]}, "message 2 after the system's is not one of 'assistant'"),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "message 2 after the system's is not one of 'assistant' with a text",
        ),
        ({"messages": [USER]}, "the last question has no answer"),
        ({"messages": [{"role": "system", "content": 3}]}, "the system message has no text"),
        ({"messages": [USER, {"role": "assistant", "content": "caf\udce9"}]}, "is not valid Unicode"),
        ({"messages": [{"role": "system", "content": "\ud800"}]}, "is not valid Unicode"),
        ({"messages": [], "params": {"stop": ["\ud800"]}}, "is not valid Unicode"),
        ({"messages": [], "params": 3}, '"params" is not an object'),
        ({"messages": [], "params": {"when_full": "no"}}, "\"when_full\" is 'no', and not slide or stop"),
    ],
)
def test_files_that_are_no_conversation(tmp_path: Path, value: object, said: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(value))
    with pytest.raises(TextError) as caught:
        load_conversation(path, CONFIG)
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "talk.json"
    with pytest.raises(TextError, match=r"talk\.json cannot be read: No such file"):
        load_conversation(path, CONFIG)
    path.write_bytes(content)
    with pytest.raises(TextError, match=r"talk\.json is no conversation"):
        load_conversation(path, CONFIG)


def test_params_by_name() -> None:
    assert with_params(CONFIG, params_of(CONFIG)) == CONFIG
    typed = {"temperature": "0.5", "top_k": "40", "top_p": "none", "seed": "7", "ignore_eos": "false", "stop": '["a", "b"]'}
    config = with_params(CONFIG, {name: read_param(name, text) for name, text in typed.items()})
    assert (config.temperature, config.top_k, config.top_p, config.seed, config.ignore_eos) == (0.5, 40, None, 7, False)
    assert config.stop == ("a", "b")
    assert with_params(config, {"stop": read_param("stop", "The end.")}).stop == ("The end.",)
    assert with_params(config, {"stop": read_param("stop", "none")}).stop == ()
    with pytest.raises(RuntimeFileError, match=r"there is no parameter 'warmth'; there are max_new_tokens, temperature"):
        with_params(CONFIG, {"warmth": 1})
    for name, text in {"temperature": "hot", "top_k": "0.5", "seed": "-1", "stop": "[3]", "max_new_tokens": "true", "top_p": "NaN"}.items():
        with pytest.raises(RuntimeFileError, match=name):
            with_params(CONFIG, {name: read_param(name, text)})
