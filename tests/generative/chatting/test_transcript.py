"""Conversations as tokens: a longer one begins with the shorter one's, answers as the model wrote them."""

from pathlib import Path

import pytest

from flatlm.generative.chatting.transcript import Transcript
from flatlm.utilities.tokenizing.named_templates import PLAIN
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.chat_files import DEMO, TEMPLATE

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' </s>' }}"
    "{% else %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
FORGETS = (
    "{% for m in messages %}{{ '<s>' + m.role + ': ' }}{{ m.content.split('</think>')[-1] }}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
TEMPLATES = {"own": TEMPLATE, "plain": PLAIN, "llama 2": LLAMA2}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module", params=["demo", "sentencepiece", "stories"])
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> Tokenizer:
    if request.param == "demo":
        return Tokenizer.load(DEMO)
    stories = shared / "checkpoints" / "stories260K"
    return Tokenizer.load(stories if request.param == "stories" else stories / "tokenizer.model")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["A cat sat.", " A cat", "Yes \n", "é 中 😀", "", "x"])
def test_answers_stay_the_tokens_that_they_were_made_as(tokenizer: Tokenizer, name: str, answer: str) -> None:
    template = TEMPLATES[name]
    transcript, talk = Transcript(tokenizer, template), [user("Who sat? ")]
    first = transcript.read(talk)
    assert list(first.ids) == tokenizer.apply_chat_template(talk, template=template)
    own = [token for letter in answer for token in tokenizer.encode(letter, add_special_tokens=False)]  # another way to cut it
    transcript.wrote(first, answer, own)
    talk += [assistant(answer), user("The dog")]
    second = transcript.read(talk)
    assert second.ids[: len(first.ids)] == first.ids
    assert list(second.ids[len(first.ids) :][: len(own)]) == own
    assert second.text == tokenizer.render_chat(talk, template=template)
    after = list(second.ids[len(first.ids) + len(own) :])
    words = tokenizer.decode(after, skip_special_tokens=False).split()
    assert "".join(words) == "".join(second.text[len(first.text) :].split()).removeprefix("".join(answer.split()))
    known = 4 if answer != "A cat sat." else len(after)  # behind white space, and what is no letter, it may be cut in another way
    assert after[-known:] == tokenizer.encode_chat(second.text, template)[-known:]  # as if it stood there
    assert second == transcript.read(talk)  # which changes nothing
    transcript.wrote(second, "So", own[:1])
    third = transcript.read([*talk, assistant("So"), user("And?")])
    assert third.ids[: len(second.ids)] == second.ids
    assert transcript.read(talk).ids == second.ids  # asked again
    assert transcript.read(talk[:1]).ids == first.ids  # taken back


def test_a_template_that_forgets_begins_anew_where_it_does(tokenizer: Tokenizer) -> None:
    transcript, talk = Transcript(tokenizer, FORGETS), [user("Who sat?")]
    first = transcript.read(talk)
    answer = "So the</think>A cat"
    transcript.wrote(first, answer, tokenizer.encode(answer, add_special_tokens=False))
    talk += [assistant(answer), user("The dog")]
    second = transcript.read(talk)
    assert second.ids[: len(first.ids)] == first.ids
    assert "the" not in second.text[len(first.text) :].split("</s>")[0]
    assert tokenizer.decode(second.ids) == tokenizer.decode(tokenizer.apply_chat_template(talk, template=FORGETS))


def test_tokens_that_stand_for_more_than_the_text_are_not_taken(tokenizer: Tokenizer) -> None:
    transcript, talk = Transcript(tokenizer, TEMPLATE), [user("Who sat?")]
    transcript.wrote(transcript.read(talk), " A cat", None)
    talk += [assistant(" A cat"), user("The dog")]
    assert tokenizer.decode(transcript.read(talk).ids) == tokenizer.decode(tokenizer.apply_chat_template(talk, template=TEMPLATE))


def test_another_conversation_is_read_as_it_is(tokenizer: Tokenizer) -> None:
    transcript, other = Transcript(tokenizer, TEMPLATE), [{"role": "system", "content": "Be kind."}, user("Who sat?")]
    transcript.wrote(transcript.read([user("Who sat?")]), " A cat", [5, 6])
    assert list(transcript.read(other).ids) == tokenizer.apply_chat_template(other, template=TEMPLATE)
