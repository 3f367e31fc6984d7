"""Chat templates by name, for models that came with none, and templates from files of the user's own."""

import difflib
from pathlib import Path

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.chat_template import require_template
from flatlm.utilities.tokenizing.settings import read_bytes

_CONTENT = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}{%- elif content -%}{{ content | map(attribute='text') | join }}{%- endif -%}
{%- endmacro -%}
"""

PLAIN = (
    _CONTENT
    + """\
{%- for message in messages -%}
{%- if not loop.first and message.role != 'assistant' -%}{{ '\\n' }}{%- endif -%}
{{ text(message.content) }}
{%- endfor -%}"""
)
"""Contents one after another, for models that only write on: an answer goes on from what is before it, all else begins a line."""

CHATML = (
    _CONTENT
    + """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
)
"""Each message between <|im_start|> and <|im_end|>, with its role. Good for models that were trained on it."""

NAMED = {"plain": PLAIN, "chatml": CHATML}


def find_template(name_or_file: str) -> str:
    """The Jinja text of a template by its name in NAMED, or of the file of that path.

    Raises TokenizerError where there is neither, or the file is no template.
    """
    if name_or_file in NAMED:
        return NAMED[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        close = difflib.get_close_matches(name_or_file, NAMED, 1)
        guess = f"; did you mean {close[0]}?" if close else ""
        raise TokenizerError(f"{name_or_file}: is no chat template: neither a name ({', '.join(NAMED)}) nor a file of Jinja text{guess}")
    try:
        template = read_bytes(path).decode("utf-8")
    except ValueError as error:
        raise TokenizerError(f"{path}: is not UTF-8 text ({error}); give a file of Jinja text") from error
    try:
        require_template(template)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    return template
