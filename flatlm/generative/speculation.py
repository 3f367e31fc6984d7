"""Speculative decoding: a small model writes ahead, and the large one checks several of its tokens in one call.

The large model's signature `verify_<T>` reads the text's last token and T - 1 that the draft proposes, and gives the logits after each.
Whoever picks tokens picks from those logits as if they came one at a time; as long as a pick is what the draft proposed, the logits after
it are there already. So the picks, greedy or drawn, are those of the large model alone: nothing is accepted that it did not pick itself.
(Leviathan, Kalman, Matias: "Fast Inference from Transformers via Speculative Decoding", 2023; this is its case of a sure draft, without
the draws that would accept more where texts are sampled.)

It costs the draft's steps and a call of T tokens in the place of one, and gains one call for each proposal that is accepted.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.beginnings import common_tokens
from flatlm.generative.model_file import ModelFile
from flatlm.generative.runner import Runner
from flatlm.generative.signature_calls import Logits

VERIFY_LENGTH = 4
"""Tokens of a draft that a checkpoint's export checks at once, where nothing else is said."""


@dataclass(frozen=True)
class SpeculationCounts:
    """What was proposed, and what came of it. Counted over all texts."""

    tokens: int = 0
    """Tokens whose logits were asked for: the steps that the large model alone would have made."""
    target_calls: int = 0
    """The large model's calls for them."""
    proposed: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float | None:
        """The part of the proposals that was picked; None before there was one."""
        return self.accepted / self.proposed if self.proposed else None


class SpeculativeRunner:
    """One text, read and written by `target`, faster where `draft` foresees it. In the place of a `Runner`; not for several threads."""

    def __init__(self, target: Runner, draft: Runner) -> None:
        """Raises RuntimeFileError where the two have other vocabularies, or the target's file cannot check several tokens at once."""
        if target.verify_length < 2:
            raise RuntimeFileError(
                f"{target.file.path} has no signature that checks a draft: export it with --verify-len 4 for {draft.file.path} to be one"
            )
        if target.vocab_size != draft.vocab_size:
            raise RuntimeFileError(
                f"{draft.file.path} cannot write ahead for {target.file.path}: its vocabulary has {draft.vocab_size} tokens, not "
                f"{target.vocab_size}; a draft has the same tokenizer"
            )
        draft.require_left_to_right()
        self.target, self.draft = target, draft
        self._text: list[int] = []  # what was read
        self._ahead: deque[tuple[int, Logits]] = deque()  # tokens that the target has read beyond it, each with the logits after it
        self._in_draft: list[int] = []  # what the draft's cache holds
        self._counts = SpeculationCounts()

    @property
    def counts(self) -> SpeculationCounts:
        return self._counts

    @property
    def file(self) -> ModelFile:
        return self.target.file

    @property
    def threads(self) -> int:
        return self.target.threads

    @property
    def vocab_size(self) -> int:
        return self.target.vocab_size

    @property
    def cache_length(self) -> int:
        """S: the target's. A text that outgrows the draft's context goes on without it."""
        return self.target.cache_length

    @property
    def kv_length(self) -> int:
        return self.target.kv_length

    @property
    def position(self) -> int:
        return len(self._text)

    def sibling(self) -> "SpeculativeRunner":
        """Another text over the same loaded weights, target's and draft's."""
        return SpeculativeRunner(self.target.sibling(), self.draft.sibling())

    def copy_from(self, other: "SpeculativeRunner") -> None:
        """Take over the text of a `sibling`."""
        self.target.copy_from(other.target)
        self.draft.copy_from(other.draft)
        self._text, self._in_draft, self._ahead = [*other._text], [*other._in_draft], deque(other._ahead)

    def reset(self) -> None:
        self.target.reset()
        self.draft.reset()
        self._text, self._in_draft = [], []
        self._ahead.clear()

    def can_rewind(self, position: int) -> bool:
        """The draft is not asked: it reads a text again that it cannot go back in."""
        return 0 <= position <= self.position and self.target.can_rewind(position)

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on. RuntimeFileError where the target cannot."""
        if not 0 <= position <= self.position:
            raise RuntimeFileError(f"cannot go to position {position}: {self.position} tokens are in the cache")
        self.target.rewind(position)
        self._ahead.clear()
        del self._text[position:]

    def require_room(self, count: int) -> None:
        self._catch_up()
        self.target.require_room(count)

    def require_left_to_right(self) -> None:
        self.target.require_left_to_right()

    def prefill(self, ids: Sequence[int]) -> None:
        for _ in self.reading(ids):
            pass

    def reading(self, ids: Sequence[int]) -> Iterator[int]:
        """Reads `ids` call by call; the draft reads them when it is first asked."""
        self._catch_up()
        done = 0
        for used in self.target.reading(ids):
            self._text += map(int, ids[done : done + used])
            done += used
            yield used

    def step(self, token: int) -> Logits:
        """Reads one token: the target's logits [V] of the next."""
        token = int(token)
        if self._ahead and self._ahead[0][0] == token:
            self._text.append(token)
            self._count(tokens=1, accepted=1)
            return self._ahead.popleft()[1]
        self._catch_up()
        proposed = self._propose(token)
        rows = self.target.verify([token, *proposed])
        self._text.append(token)
        self._ahead.extend(zip(proposed, rows[1:], strict=True))
        self._count(tokens=1, target_calls=1, proposed=len(proposed))
        first: Logits = rows[0]
        return first

    def close(self) -> None:
        self.target.close()
        self.draft.close()

    def __enter__(self) -> "SpeculativeRunner":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _catch_up(self) -> None:
        """Drop what the target has read ahead."""
        if self._ahead:
            self._ahead.clear()
            self.target.rewind(self.position)

    def _propose(self, token: int) -> list[int]:
        """The draft's most probable tokens after the text and `token`: as many as one call of the target checks.

        None where that call, or the draft's context, has no room for them: in smaller pieces nothing would be gained.
        """
        text, count = [*self._text, token], self.target.verify_length - 1
        if len(text) + count > self.target.cache_length or len(text) + count > self.draft.cache_length + 1:
            return []
        shared = common_tokens(self._in_draft, text[:-1])
        if not self.draft.can_rewind(shared):
            shared = 0
            self.draft.reset()
        else:
            self.draft.rewind(shared)
        self.draft.prefill(text[shared:-1])
        self._in_draft = text[:-1]
        proposed: list[int] = []
        for _ in range(count):
            self._in_draft.append(proposed[-1] if proposed else token)
            proposed.append(int(self.draft.step(self._in_draft[-1]).argmax()))
        return proposed

    def _count(self, *, tokens: int = 0, target_calls: int = 0, proposed: int = 0, accepted: int = 0) -> None:
        was = self._counts
        self._counts = SpeculationCounts(
            was.tokens + tokens, was.target_calls + target_calls, was.proposed + proposed, was.accepted + accepted
        )


def open_runner(file: Path | str, draft: Path | None, *, threads: int | None = None) -> Runner | SpeculativeRunner:
    """A file, with its draft where there is one. Raises RuntimeFileError where they do not fit one another."""
    target = Runner.open(file, threads=threads)
    if draft is None:
        return target
    try:
        return SpeculativeRunner(target, Runner.open(draft, threads=threads))
    except BaseException:
        target.close()
        raise


def counts_of(runner: object) -> SpeculationCounts | None:
    """None for one that has no draft."""
    return runner.counts if isinstance(runner, SpeculativeRunner) else None


def recorded_counts(runner: object) -> dict[str, Any]:
    """What came of a draft, as the "speculation" of a JSON object; nothing for a runner that has none."""
    counts = counts_of(runner)
    return {} if counts is None else {"speculation": {**asdict(counts), "acceptance": counts.acceptance}}


def describe_counts(counts: SpeculationCounts) -> str:
    """In a line, for people."""
    if counts.acceptance is None:
        return "the draft proposed nothing"
    return (
        f"draft: {counts.acceptance:.0%} of {counts.proposed} proposals accepted, {counts.tokens} tokens in {counts.target_calls} calls "
        f"of the model ({counts.tokens / counts.target_calls:.2f} a call)"
    )
