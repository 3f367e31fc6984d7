"""Runs a file that fills blanks: a context, read whole in one call, and then span after span (layers/infilling.py has the places).

All of a context sees all of it, so no part of it can be read before the rest: it goes through one prefill signature. A span's tokens see
what was read before them, as any text's do: they may go through decode, or through any prefill signature.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.generative.runner import Runner
from flatlm.generative.signature_calls import Places


class InfillingRunner(Runner):
    """One text of context and spans, being read and written."""

    _context = 0
    _mask: int | None = None
    _begin = 0

    @classmethod
    def open(cls, path: Path | str, *, threads: int | None = None, weight_cache: bool | Path = True) -> Self:
        """As `Runner.open`; RuntimeFileError, too, for a file of a model that fills no blanks."""
        runner = super().open(path, threads=threads, weight_cache=weight_cache)
        if not runner.file.fills_blanks:
            runner.close()
            raise RuntimeFileError(f"{path} fills no blanks: its signatures take no position_ids and no prefix")
        return runner

    @property
    def context(self) -> int:
        """Tokens of the context; 0 before one was read."""
        return self._context

    @property
    def longest_context(self) -> int:
        """The most tokens that a context can have: those of the longest prefill signature."""
        return max(self.prefill_lengths, default=0)

    def reset(self) -> None:
        """Begin a new text."""
        super().reset()
        self._context, self._mask, self._begin = 0, None, 0

    def can_rewind(self, position: int) -> bool:
        """Not into the context, of which no part can be read again."""
        return super().can_rewind(position) and (position == 0 or position >= max(self._context, self._begin))

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on: those of the span that is being read, or all, for a new text."""
        if position and position < max(self._context, self._begin):
            raise RuntimeFileError(f"cannot go to position {position}: a context, or a span, is forgotten as a whole; reset")
        super().rewind(position)
        if position == 0:
            self._context, self._mask, self._begin = 0, None, 0

    def read_context(self, ids: Sequence[int]) -> None:
        """Begins a new text with a context, in the shortest prefill signature that holds it. RuntimeFileError where none does."""
        self.reset()
        if not len(ids):
            raise RuntimeFileError("the context has no tokens; it has one mask at least")
        length = next((length for length in self.prefill_lengths if length >= len(ids)), None)
        if length is None:
            raise RuntimeFileError(
                f"{self.file.path}: a context of {len(ids)} tokens is longer than its longest prefill signature, {self.longest_context}, "
                "and blanks are filled by what is on both sides, so that it is read in one call: shorten the text, or export the model "
                f"with --prefill {len(ids)} or more"
            )
        tokens = np.asarray(ids, np.int64)
        self._require_known(tokens)
        self._context = len(ids)
        self._call(next(spec for spec in self.file.prefill if spec.length == length), tokens)

    def begin_span(self, mask: int) -> None:
        """What is read from here on is for the blank whose mask is at this place of the context."""
        if not 0 <= mask < self._context:
            raise RuntimeFileError(f"no mask can be at place {mask} of a context of {self._context} tokens")
        self._mask, self._begin = mask, self.position

    def _places(self, position: int, length: int) -> Places:
        own = np.arange(position, position + length, dtype=np.int32)
        if self._mask is None:
            return np.stack([own, np.zeros_like(own)]), self._context
        return np.stack([np.full_like(own, self._mask), own - self._begin + 1]), self._context
