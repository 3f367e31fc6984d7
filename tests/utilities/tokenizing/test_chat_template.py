"""Chat templates: the same text as transformers renders, within a sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing import template_steps
from flatlm.utilities.tokenizing.chat_template import render_chat
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": 'You are <b>brief</b> & "kind" é.'},
    {"role": "user", "content": "  Hi there \n"},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"z": 1, "a": "é<"}}]},
    {"role": "user", "content": "Bye"},
]
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | default('') | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA2 = """{% for message in messages %}
{% if message.role == 'user' %}
{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}
{% elif message.role == 'assistant' %}
{% generation %}{{ (message.content or '') + eos_token }}{% endgeneration %}
{% else %}
    {% continue %}
{% endif %}
{% endfor %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "tojson": (
        "{{ messages | tojson }}|{{ messages[2] | tojson(indent=2) }}|"
        "{{ messages[0] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0, d=dict(a=1)) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.d.a }}"
    ),
    "scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "variables": (
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ image_token }}{{ pad_token is defined }}{{ tools is none }}"
        "{{ documents is none }}{{ add_generation_prompt }}{{ strftime_now('%Y') }}"
    ),
    "blocks": "a\n  {% if true %}\n  b\n  {%- endif %}\n\n{# note #}\nc{{ '\n' }}",
    "default": "{{ messages[1].missing }}|{{ messages[2].content is defined }}",
}


def directory_with(shared: Path, tmp_path: Path, template: Any, file: str | None = None) -> Path:
    original = shared / "checkpoints" / "stories260K"
    config = json.loads((original / "tokenizer_config.json").read_text())
    config |= {"chat_template": template, "image_token": "<image>"} if template is not None else {}
    (tmp_path / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file)
    return tmp_path


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_same_ids_as_transformers(shared: Path, tmp_path: Path, name: str, prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    directory = directory_with(shared, tmp_path, TEMPLATES[name])
    theirs, ours = transformers.AutoTokenizer.from_pretrained(str(directory)), Tokenizer.load(directory)
    text = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=prompt, tokenize=False)
    assert ours.render_chat(CONVERSATION, add_generation_prompt=prompt) == text
    ids = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=prompt, tokenize=True, return_dict=False)
    assert ours.apply_chat_template(CONVERSATION, add_generation_prompt=prompt) == ids
    assert len(ids) > 1


def test_the_prompt_for_an_answer_is_the_default(shared: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory_with(shared, tmp_path, CHATML))
    assert tokenizer.render_chat(CONVERSATION).endswith("<|im_start|>assistant\n")
    assert tokenizer.apply_chat_template(CONVERSATION) == tokenizer.apply_chat_template(CONVERSATION, True)
    assert tokenizer.apply_chat_template(CONVERSATION) != tokenizer.apply_chat_template(CONVERSATION, False)


@pytest.mark.parametrize(
    ("template", "file", "expected"),
    [
        ("one", None, "one"),
        ([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "one"}], None, "one"),
        ([{"name": "tool_use", "template": "tools"}], None, None),
        ("one", "from the file", "from the file"),
        (None, "from the file", "from the file"),
        (None, None, None),
    ],
)
def test_where_templates_come_from(shared: Path, tmp_path: Path, template: Any, file: str | None, expected: str | None) -> None:
    tokenizer = Tokenizer.load(directory_with(shared, tmp_path, template, file))
    assert tokenizer.chat_template == expected
    if expected is None:
        with pytest.raises(TokenizerError, match=r"tokenizer.json: comes with no chat template \(in tokenizer_config.json or"):
            tokenizer.apply_chat_template(CONVERSATION)
    else:
        assert tokenizer.render_chat(CONVERSATION) == expected


def render(template: str, messages: Any = ({"role": "user", "content": "x"},)) -> str:
    return render_chat(template, messages, special_tokens={"bos_token": "<s>"}, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ dict.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}{{ namespace.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ '%s'.format.__globals__ }}",
        "{{ open('/etc/passwd') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(messages) }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    try:
        text = render(template)
    except TokenizerError as error:
        assert str(error).startswith("the chat template refuses these messages: ")
    else:
        assert text == ""  # what is unsafe is undefined


def test_templates_see_plain_data_only() -> None:
    class Text(str):
        def steal(self) -> str:
            return "stolen"

    messages = [{"role": "user", "content": Text("x")}]
    with pytest.raises(TokenizerError, match="UndefinedError: 'str object' has no attribute 'steal'"):
        render("{{ messages[0].content.steal() }}", messages)
    assert render("{% set x = messages[0].pop %}{{ messages[0].content }}", messages) == "x"
    assert type(messages[0]["content"]) is Text


@pytest.mark.parametrize(
    ("template", "messages", "complaint"),
    [
        ("x", [], "the conversation is empty; give at least one message"),
        (
            "x",
            [{"role": "user", "content": object()}],
            "the messages must be mappings of JSON values, with 'role' and 'content': Object of type object",
        ),
        ("x", ["hi"], "the messages must be mappings of JSON values"),
        ("x\n{% if %}", [{"role": "user"}], "the chat template is broken at its line 2: Expected an expression"),
        (
            "{{ raise_exception('Roles must alternate!') }}",
            [{"role": "user"}],
            "the chat template refuses these messages: TemplateError: Roles must alternate!",
        ),
        ("{{ messages[0].content.strip() }}", [{"role": "user"}], "the chat template refuses these messages: UndefinedError: "),
        ("{{ 1 // 0 }}", [{"role": "user"}], "the chat template refuses these messages: ZeroDivisionError: "),
    ],
)
def test_errors(template: str, messages: Any, complaint: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        render(template, messages)
    assert str(caught.value).startswith(complaint)


LONG = "{% for a in range(99999) %}{% for b in range(99999) %}"
ENDLESS = {
    "nested": (LONG + "{% endfor %}{% endfor %}", "turns of its loops"),
    "filtered": ("{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}", "turns of its loops"),
    "indexed": (LONG + "{% if loop.last %}{{ loop.length }}{% endif %}{% endfor %}{% endfor %}", "turns of its loops"),
    "recursive": ("{% for a in [1, 2] recursive %}{% if loop.depth < 40 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}", "turns of its loops"),
    "macro": ("{% macro m(n) %}{% if n %}{% set a = m(n - 1) + m(n - 1) %}{% endif %}{% endmacro %}{{ m(40) }}", "turns of its loops"),
    "text": ("{% set n = namespace(s='a') %}{% for a in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}", "characters"),
    "product": ("{{ ('a' * 99999) * 99999 }}", "characters"),
    "list": ("{{ ([1] * 99999) * 99999 }}", "characters"),
    "power": ("{{ 9 ** 99999999 }}", "a power is too large"),
    "format": ("{{ '%999999999999d' % 1 }}", "formats with a width"),
    "written": ("{% set s = 'a' * 999999 %}{% for a in range(999) %}{{ s }}{% endfor %}", "characters"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_templates_that_would_not_end_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_steps, "MOST_STEPS", 20_000)
    monkeypatch.setattr(template_steps, "MOST_CHARACTERS", 1 << 20)
    template, said = ENDLESS[name]
    for _ in range(2):  # each rendering has its own count
        with pytest.raises(TokenizerError, match=f"the chat template refuses these messages: SecurityError: .*{said}"):
            render_chat(template, CONVERSATION, special_tokens={}, add_generation_prompt=True)


def test_loops_are_as_before() -> None:
    loops = (
        "{% for a in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}none{% endfor %}"
        "{% for a in [] %}{% else %}none{% endfor %}{% for a, b in {'x': 1}.items() if b %}{{ a }}{{ loop.revindex }}{% endfor %}"
        "{% for a in [[1, [2]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}{{ 2 ** 8 + 7 % 4 }}{{ '%02d|%s' % (3, 'a') }}"
    )
    assert render_chat(loops, CONVERSATION, special_tokens={}, add_generation_prompt=True) == "1/3,2/3,3/3nonex11225903|a"
