"""Chat templates: what a checkpoint's Jinja template needs so that LiteRT-LM renders the text that transformers renders.

LiteRT-LM 0.18.1 renders with minijinja, and sets trim_blocks and lstrip_blocks as transformers does, but

- a message's content is always a list of parts, [{"type": "text", "text": ...}], where checkpoints' templates expect text;
- `bos_token` and `eos_token` are empty and other special tokens undefined; it puts the start token of the bundle's
  metadata before the first turn by itself;
- it rewrites Python's methods (split, strip, startswith, ...) to filters by patterns that miss arguments with a line break;
- it knows `{% generation %}`, but not `{%- generation -%}`; and it keeps a newline at the end that Jinja drops.

What stays beyond it: `break` and `continue`, `.get()`, `.upper()` and the like, and `tojson(indent=...)`. It says so when
a conversation begins. After an answer's stop token it also skips what the template puts there, such as a newline.
"""

import json
import re
from collections.abc import Mapping

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_TAG = re.compile(rf"\{{#.*?#\}}|\{{[{{%](?:{_STRING}|(?![%}}]\}})[^'\"])*[%}}]\}}", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_TEXT_OF_PARTS = """\
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

    `special_tokens` maps the names that templates use ("eos_token") to text. "bos_token" is left out, since LiteRT-LM
    puts the start token before the text: see `needs_start_token`.
    """
    named = sorted((name, text) for name, text in special_tokens.items() if name != "bos_token")
    tokens = "".join(f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in named)
    body = _GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template.removesuffix("\n"))
    body = _TAG.sub(lambda tag: _STRINGS.sub(lambda text: text[0].replace("\n", "\\n"), tag[0]), body)
    # trim_blocks drops the newline after this last tag and no more, and lstrip_blocks sees the template begin a line.
    return tokens + _TEXT_OF_PARTS + "{%- set messages = flatlm.messages %}\n" + body


def needs_start_token(template: str, bos_token: str) -> bool:
    """Whether LiteRT-LM must put BOS before what the template renders, so that it is there once, as in transformers.

    It must where the template asks for `bos_token`, which is empty in LiteRT-LM. A template that spells BOS out brings its
    own, and one with neither has none.
    """
    return "bos_token" in template and bos_token not in template
