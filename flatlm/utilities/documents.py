"""Texts from a file, and their tokens in pieces that fit a context: what evaluation reads, and calibration can."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm.errors import TextError
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

SUFFIXES = (".txt", ".json", ".jsonl")
OWN_TEXT = Path(__file__).parents[1] / "assets" / "demo_text" / "held_out.json"
"""Stories that ship with FlatLM, for where no text is given."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a document, of which the last `scored` are to be foretold, each from those before it in the piece."""

    ids: tuple[int, ...]
    scored: int


def read_documents(path: Path) -> list[str]:
    """The documents of a file: a .txt is one, a .json is a list of them, a .jsonl has one a line; each a string, or {"text": string}.

    Raises TextError, which names the file and the line or the document.
    """
    if path.suffix not in SUFFIXES:
        raise TextError(f"{path}: the suffix says what it is; use {', '.join(SUFFIXES)}")
    text = _read(path)
    if path.suffix == ".txt":
        found = [(str(path), text.replace("\r\n", "\n").replace("\r", "\n"))]  # as every text file is read
    elif path.suffix == ".json":
        values = _parse(text, str(path))
        if not isinstance(values, list):
            raise TextError(f"{path}: a .json file must be a list of texts, not {_shown(values)}")
        found = [(where := f"{path}, document {number}", _text(value, where)) for number, value in enumerate(values, 1)]
    else:
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [(where, _text(_parse(line, where), where)) for where, line in lines]
    if not found:
        raise TextError(f"{path} has no documents")
    for where, document in found:
        if not document.strip():
            raise TextError(f"{where}: the text is empty")
    return [document for _, document in found]


def encode_document(text: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """A document's ids, begun with BOS where the tokenizer begins texts with it.

    Raises TextError where there is nothing to foretell, or the tokenizer is not the model's.
    """
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise TextError(f"the text {_shown(text)} has {len(ids)} tokens; it needs 2, so that one can be foretold")
    if (largest := max(ids)) >= vocab_size:
        raise TextError(
            f"{tokenizer.source} is the wrong tokenizer: it gives token {largest}, and the model has a vocabulary of {vocab_size}"
        )
    return ids


def windows(ids: Sequence[int], context: int, stride: int | None) -> Iterator[Piece]:
    """A document's windows of at most `context` tokens, which score each token but the first exactly once.

    Window k begins at token k * `stride`, and scores what the ones before did not: each token but those of the first window is foretold
    from at least context - stride others. `stride` None: only the first window; the rest of the document is left out. (The method of
    Hugging Face's "Perplexity of fixed-length models".) ValueError for a stride outside 1 to context - 1.
    """
    if stride is not None and not 0 < stride < context:
        raise ValueError(f"a stride of {stride} in a context of {context}")
    scored = min(context, len(ids))
    yield Piece(tuple(ids[:context]), scored - 1)
    begin = 0
    while stride is not None and scored < len(ids):
        begin += stride
        end = min(begin + context, len(ids))
        yield Piece(tuple(ids[begin:end]), end - scored)
        scored = end


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextError(f"{path}, line {line}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise TextError(f"{where}{line}: is not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise TextError(f"{where}: is not JSON that can be read ({error})") from error


def _text(value: object, where: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TextError(f'{where}: must be a string, or an object with a string under "text", not {_shown(value)}')
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
