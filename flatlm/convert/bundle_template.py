"""Chat templates: what a checkpoint's Jinja template needs so that LiteRT-LM renders the text that transformers renders.

LiteRT-LM 0.18.1 renders with minijinja, and sets trim_blocks and lstrip_blocks as transformers does, but

- a message's content is always a list of parts, [{"type": "text", "text": ...}], where checkpoints' templates expect text;
- `bos_token` and `eos_token` are empty and other special tokens undefined: here the template sets them all. So BOS is part of
  the text, wherever the template puts it, and not the bundle's start token, which would come once, before all turns;
- the test `is none` holds for what is undefined, and not for none; `== none` means none, as everywhere;
- `documents` is undefined;
- it rewrites Python's methods (split, strip, startswith, ...) to filters by patterns that miss arguments with a line break; some, such
  as `upper`, it does not know;
- it knows `{% generation %}`, but not `{%- generation -%}`; and it keeps a newline at the end that Jinja drops.

What stays beyond it: `break` and `continue`, `.get()`, `.format()`, and `tojson(indent=...)`. It says so when a conversation
begins. A mapping's keys come in alphabetical order there, and `True` and `None` are written in small letters. After an answer's
stop token it also skips what the template puts there, such as a newline.
"""

import json
import re
from collections.abc import Mapping

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_TAG = re.compile(rf"\{{#.*?#\}}|\{{[{{%](?:{_STRING}|(?![%}}]\}})[^'\"])*[%}}]\}}", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
_NONE = re.compile(r"\bis\s+(not\s+)?none\b")
_CASES = re.compile(r"\.(upper|lower|title|capitalize)\(\s*\)")
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_TEXT_OF_PARTS = """\
{%- if not tools -%}{%- set tools = none -%}{%- endif -%}
{%- if not documents -%}{%- set documents = none -%}{%- endif -%}
{%- set flatlm = namespace(messages=[], text='', plain=true) -%}
{%- for message in messages -%}
{%- set flatlm.text = '' -%}
{%- set flatlm.plain = message.content is defined and message.content is iterable and message.content is not string -%}
{%- if flatlm.plain -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{%- set flatlm.text = flatlm.text ~ part.text -%}{%- else -%}{%- set flatlm.plain = false -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set flatlm.messages = flatlm.messages + [dict(message, content=flatlm.text) if flatlm.plain else message] -%}
{%- endfor -%}
"""


def for_litert_lm(template: str, special_tokens: Mapping[str, str]) -> str:
    """`template`, made to render in LiteRT-LM as it does in transformers, where it still renders the same.

    `special_tokens` maps the names that templates use ("eos_token") to text.
    """
    tokens = "".join(f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in sorted(special_tokens.items()))
    body = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template.removesuffix("\n"))
    body = _TAG.sub(lambda tag: _in_tag(tag[0]), body)
    # trim_blocks drops the newline after this last tag and no more, and lstrip_blocks sees the template begin a line.
    return tokens + _TEXT_OF_PARTS + "{%- set messages = flatlm.messages %}\n" + body


def _in_tag(tag: str) -> str:
    """A tag in minijinja's words: strings without line breaks, and between them tests and methods that it has."""
    pieces, end = [], 0
    for text in [*_STRINGS.finditer(tag), None]:
        code = tag[end : text.start() if text else None]
        code = _NONE.sub(lambda test: "!= none" if test[1] else "== none", code)
        pieces.append(_CASES.sub(r" | \1", code))
        if text:
            pieces.append(text[0].replace("\n", "\\n"))
            end = text.end()
    return "".join(pieces)
