"""Chat templates for LiteRT-LM render in transformers what they rendered before. That LiteRT-LM agrees: test_bundle_litert_lm."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from flatlm.convert.bundle_template import for_litert_lm, needs_start_token
from tests.bundle_templates import SPECIAL_TOKENS, TEMPLATES

CONVERSATION = [
    {"role": "system", "content": "Be  brief. "},
    {"role": "user", "content": ' "Hi"\n there '},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
    {"role": "user", "content": "Bye é"},
]


def render(template: str, messages: list[dict[str, Any]]) -> str:
    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **SPECIAL_TOKENS)
    return str(rendered[0])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:2]], ids=["conversation", "question"])
def test_renders_as_before_from_text_and_from_parts(name: str, messages: list[dict[str, Any]]) -> None:
    before, after = TEMPLATES[name], for_litert_lm(TEMPLATES[name], SPECIAL_TOKENS)
    parts = [m | {"content": [{"type": "text", "text": m["content"][:3]}, {"type": "text", "text": m["content"][3:]}]} for m in messages]
    assert render(after, messages) == render(before, messages)
    assert render(after, parts) == render(before, messages)


def test_messages_without_plain_text_are_left_alone() -> None:
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    bare = {"role": "assistant"}
    template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    assert render(for_litert_lm(template, {}), [image, call, bare]) == render(template, [image, call, bare])


def test_special_tokens_with_quotes_and_letters_beyond_ascii() -> None:
    tokens = {"eos_token": '<é"end\\\N{GRINNING FACE}>', "bos_token": "<s>"}
    adapted = for_litert_lm("{{ eos_token }}", tokens)
    rendered, _ = render_jinja_template([CONVERSATION], chat_template=adapted)
    assert rendered[0] == tokens["eos_token"]


@pytest.mark.parametrize(
    ("template", "needed"),
    [("{{ bos_token }}{{ messages }}", True), ("<s>{{ messages }}", False), ("{{ messages }}", False), ("{{ bos_token }} not <s>", False)],
)
def test_start_token_is_there_once(template: str, needed: bool) -> None:
    assert needs_start_token(template, "<s>") == needed
