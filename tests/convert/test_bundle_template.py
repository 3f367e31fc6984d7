"""Chat templates for LiteRT-LM render in transformers what they rendered before. That LiteRT-LM agrees: test_bundle_litert_lm."""

from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from flatlm.convert.bundle_template import for_litert_lm
from tests.bundle_templates import SPECIAL_TOKENS, TEMPLATES
from tests.chat_styles import STYLES, conversations

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


@pytest.mark.parametrize("name", STYLES)
def test_styles_render_as_before_from_text_and_from_parts(name: str) -> None:
    style = STYLES[name]
    tokens = {"bos_token": style.bos or "", "eos_token": style.eos}
    adapted = for_litert_lm(style.template, tokens)
    for messages in conversations(style).values():
        parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        for prompt in (True, False):
            before = render_jinja_template([messages], chat_template=style.template, add_generation_prompt=prompt, **tokens)[0]
            for given in (messages, parts):
                # As LiteRT-LM calls it: no special tokens, and no tools, which is an empty list.
                after = render_jinja_template([given], chat_template=adapted, add_generation_prompt=prompt, tools=[], bos_token="")[0]
                assert after == before


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


def test_bos_is_part_of_the_text() -> None:
    """LiteRT-LM's own `bos_token` is empty, and its start token comes once, before all turns."""
    template = "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}"
    adapted = for_litert_lm(template, {"bos_token": "<s>"})
    rendered, _ = render_jinja_template([CONVERSATION], chat_template=adapted, bos_token="", eos_token="")
    assert rendered[0] == "".join("<s>" + m["content"] for m in CONVERSATION)


@pytest.mark.parametrize(
    ("written", "adapted"),
    [
        ("{{ x is none }}", "{{ x == none }}"),
        ("{% if x is  not none and y is none %}", "{% if x != none and y == none %}"),
        ("{{ ' is none ' }} is none {{ nonesuch is nonesuch }}", "{{ ' is none ' }} is none {{ nonesuch is nonesuch }}"),
        ("{{ x.strip().upper() ~ '.lower()' ~ y.title() }}.upper()", "{{ x.strip() | upper ~ '.lower()' ~ y | title }}.upper()"),
        ("{{ 'a\nb' }}\n{%- if x['\n'] -%}", "{{ 'a\\nb' }}\n{%- if x['\\n'] -%}"),
    ],
)
def test_what_minijinja_says_otherwise(written: str, adapted: str) -> None:
    assert for_litert_lm(written, {}).endswith("%}\n" + adapted)


@pytest.mark.parametrize("tools", [None, []], ids=str)
def test_no_tools_are_none(tools: list[Any] | None) -> None:
    """LiteRT-LM passes an empty list."""
    template = "{% if tools is none %}none{% endif %}{% if documents is none %}none{% endif %}{{ tools is defined }}"
    adapted = for_litert_lm(template, {})
    assert render_jinja_template([CONVERSATION], chat_template=adapted, tools=tools)[0][0] == "nonenoneTrue"
    given = render_jinja_template([CONVERSATION], chat_template=for_litert_lm("{{ tools }}", {}), tools=[{"name": "f"}])[0][0]
    assert given == "[{'name': 'f'}]"


def test_what_litert_lm_does_not_define_is_none() -> None:
    adapted = for_litert_lm("{% if documents is none and tools is none %}none{% endif %}", {})
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    assert environment.from_string(adapted).render(messages=CONVERSATION) == "none"
