"""Reads many texts that begin alike with one runner: what two texts share at their beginning is read once."""

from collections.abc import Iterator, Sequence

import numpy as np

from flatlm.generative.beginnings import common_tokens
from flatlm.generative.evaluation.scoring import chunk_length, prefills_logits
from flatlm.generative.runner import Runner
from flatlm.generative.signature_calls import Logits


class PrefixReader:
    """A runner, and the tokens in its cache. Texts that come in the order of their tokens share most."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._scoring = prefills_logits(runner)
        self._chunk = chunk_length(runner)
        self._held: list[int] = []

    @property
    def scores_by_prefill(self) -> bool:
        """Whether the file's prefill signatures give logits; without them each scored token takes a decode step."""
        return self._scoring

    def logits(self, ids: Sequence[int], wanted: int) -> Iterator[Logits]:
        """Read a text of n tokens; the logits after its last `wanted` ones, 1 or more, in pieces [m, V] from the first to the last.

        All pieces must be taken. RuntimeFileError where the text does not fit, or a token is not in the vocabulary.
        """
        unseen = self._share(ids, len(ids) - wanted)
        unwanted = len(unseen) - wanted
        # The tokens before the wanted ones are read along with them where they do not fill a call of their own.
        alone = unwanted // self._chunk * self._chunk if self._scoring else unwanted
        if alone:
            self._read(unseen[:alone])
        for start in range(alone, len(unseen), self._chunk):
            part = unseen[start : start + self._chunk]
            logits = self._read_scoring(part) if self._scoring else np.stack([self.step(token) for token in part])
            if len(found := logits[max(0, unwanted - start) :]):
                yield found

    def begin(self, ids: Sequence[int]) -> Logits:
        """Read a prompt: the logits [V] of the token that follows it."""
        unseen = self._share(ids, len(ids) - 1)
        self._read(unseen[:-1])
        return self.step(unseen[-1])

    def step(self, token: int) -> Logits:
        """Read one token more: the logits [V] of the next."""
        logits = self._runner.step(token)
        self._held.append(token)
        return logits

    def _share(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Go back to what the cache and `ids` have in common, at most so many tokens of it; what is left to read."""
        shared = min(most, common_tokens(self._held, ids))
        whole = self._runner.position == len(self._held)  # not after a call that failed
        if shared and whole and self._runner.can_rewind(shared):
            self._runner.rewind(shared)
        else:
            self._runner.reset()
            shared = 0
        del self._held[shared:]
        return ids[shared:]

    def _read(self, ids: Sequence[int]) -> None:
        self._runner.prefill(ids)
        self._held += ids

    def _read_scoring(self, ids: Sequence[int]) -> Logits:
        logits = self._runner.prefill_logits(ids)
        self._held += ids
        return logits
