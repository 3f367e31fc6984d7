"""Calibration text as rows of tokens."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flatlm.errors import RecipeError, TextError
from flatlm.utilities.documents import encode_document, read_documents
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

LONGEST_ROW = 512
MOST_TOKENS = 1 << 13
"""More of a text is not read: on small models, twice as much made next to no difference (benchmarks/README.md)."""
LEAST_TOKENS = 512


@dataclass(frozen=True)
class CalibrationText:
    """`tokens` [N, T] int32, a row is a piece of a document; `lengths` [N]: how many of a row count, the rest is padding."""

    tokens: Tensor
    lengths: Tensor

    @property
    def valid(self) -> Tensor:
        """Which tokens count, bool [N, T]."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def count(self) -> int:
        return int(self.lengths.sum())


def no_text(what: str) -> RecipeError:
    """The error for what cannot go on without text."""
    return RecipeError(f"{what} needs calibration text: give a .txt, .json or .jsonl file with --calibration")


def read_text(path: Path, checkpoint: Path, *, vocab_size: int, max_positions: int, most: int = MOST_TOKENS) -> CalibrationText:
    """Documents of a .txt, .json or .jsonl file, by the checkpoint's tokenizer, in rows of at most LONGEST_ROW tokens.

    Raises TextError where there are fewer than LEAST_TOKENS, or where the tokenizer is another model's; TokenizerError where there is none.
    """
    tokenizer = Tokenizer.load(checkpoint)
    length = min(LONGEST_ROW, max_positions)
    rows, count = list[list[int]](), 0
    for document in read_documents(path):
        ids = encode_document(document[: 40 * most], tokenizer, vocab_size)
        begin = [tokenizer.bos_id] if tokenizer.bos_id is not None and ids[0] == tokenizer.bos_id else []
        body, first = ids[len(begin) :], True
        while body and count < most:
            head = begin if first or len(begin) < length else []
            row = [*head, *body[: length - len(head)]]
            body, first = body[length - len(head) :], False
            if len(row) > 1:
                rows.append(row)
                count += len(row)
        if count >= most:
            break
    if count < LEAST_TOKENS:
        raise TextError(f"{path}: {count} tokens are too few to calibrate on: give at least {LEAST_TOKENS}, better {MOST_TOKENS}")
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return CalibrationText(tokens, lengths)
