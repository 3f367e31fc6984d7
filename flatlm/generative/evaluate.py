"""How well an exported file foretells held-out text: perplexity of the file itself, in the runtime, and how near its checkpoint it is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError, TextError, TokenizerError
from flatlm.generative.divergence import kl_divergence, negative_log_likelihood
from flatlm.generative.reference import Reference, open_reference
from flatlm.generative.runner import Runner
from flatlm.generative.verify import require_its_adapter, require_the_same_vocabulary
from flatlm.utilities.bundling import bundled_tokenizer
from flatlm.utilities.documents import Piece, cut, encode_document, read_documents
from flatlm.utilities.tokenizer import Tokenizer

__all__ = ["EvaluationReport", "RunningFile", "evaluate", "measure", "read_documents", "text_pieces"]

CHUNK = 64
"""Tokens that are read at once where the file reads one by one."""
LOGITS_AT_ONCE = 1 << 25
"""The most logits (tokens times vocabulary) that are held of each side: 128 MB, and twice as much in float64."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationReport:
    """Means over `tokens` tokens, each foretold from the true ones before it.

    In nats; KL of the file's distribution from the reference's. The last four are None where no checkpoint was given.
    """

    tokens: int
    nll_per_token: float
    perplexity: float
    context: int
    """The most tokens that one was foretold from."""
    against: str | None = None
    reference_perplexity: float | None = None
    mean_kl: float | None = None
    top1_agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def evaluate(
    file: Path,
    documents: Sequence[str],
    *,
    checkpoint: Path | None = None,
    lora: Path | None = None,
    max_tokens: int | None = None,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Run `file` on texts, teacher-forced, each begun with BOS where the tokenizer does so. Every token but a document's first counts once.

    A document longer than the context is cut: each later piece begins with BOS and the token before the cut, so the tokens soon after a
    cut are foretold from few others, and the perplexity is a little above that of an endless context. With a `checkpoint` (and `lora`,
    the adapter merged into the file), the reference reads the very same pieces. `max_tokens`: stop when so many have been foretold.
    `tokenizer`: its directory; by default the bundle's own, else the checkpoint's. Raises TextError and other FlatlmErrors.
    """
    if max_tokens is not None and max_tokens < 1:
        raise TextError(f"--max-tokens {max_tokens}: foretell at least one")
    if not documents:
        raise TextError("there is no text to evaluate on: give at least one document")
    if checkpoint is not None:
        require_its_adapter(file, lora)
    elif lora is not None:
        raise RuntimeFileError(f"--lora {lora}: an adapter is for the reference, so give its checkpoint too")
    with Runner.open(file) as runner:
        found = _tokenizer(file, tokenizer, checkpoint)
        pieces = text_pieces(documents, found, length=runner.cache_length, vocab_size=runner.vocab_size, max_tokens=max_tokens)
        reference = None
        if checkpoint is not None:
            reference = open_reference(checkpoint, length=runner.cache_length, lora=lora)
            require_the_same_vocabulary(runner, reference, checkpoint)
        return measure(RunningFile(runner), pieces, reference=reference, chunk=chunk_length(runner), progress=progress)


class RunningFile:
    """An open file as what reads a text piece by piece."""

    name = "file"

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._prefills = any("logits" in spec.outputs for spec in runner.file.prefill)

    def reset(self) -> None:
        self._runner.reset()

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        if self._prefills:
            return self._runner.prefill_logits(ids)
        return np.stack([self._runner.step(token) for token in ids])


def measure(
    subject: Reference, pieces: Sequence[Piece], *, reference: Reference | None = None, chunk: int = CHUNK, progress: Progress | None = None
) -> EvaluationReport:
    """The same of anything that reads text, for pieces that fit its context: `chunk` tokens of a piece at a time."""
    total, done = sum(piece.scored for piece in pieces), 0
    nll = reference_nll = kl = 0.0
    agreed = 0
    for piece in pieces:
        subject.reset()
        if reference is not None:
            reference.reset()
        for inputs, targets in _chunks(piece, chunk):
            got = subject.feed(inputs)[len(inputs) - len(targets) :]
            nll += float(negative_log_likelihood(got, targets).sum())
            if reference is not None:
                expected = reference.feed(inputs)[len(inputs) - len(targets) :]
                reference_nll += float(negative_log_likelihood(expected, targets).sum())
                kl += float(kl_divergence(expected, got).sum())
                agreed += int((expected.argmax(-1) == got.argmax(-1)).sum())
            done += len(targets)
            if progress is not None:
                progress("evaluate", done, total)
    context = max(len(piece.ids) for piece in pieces) - 1
    report = EvaluationReport(total, nll / total, _perplexity(nll / total), context)
    if reference is None:
        return report
    return replace(
        report,
        against=reference.name,
        reference_perplexity=_perplexity(reference_nll / total),
        mean_kl=kl / total,
        top1_agreement=agreed / total,
    )


def _perplexity(nll_per_token: float) -> float:
    """Infinite, rather than an error, where it is beyond any number."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll_per_token)))


def _tokenizer(file: Path, directory: Path | None, checkpoint: Path | None) -> Tokenizer:
    if directory is not None:
        return Tokenizer.load(directory)
    if file.suffix == ".litertlm":
        return bundled_tokenizer(file)
    if checkpoint is not None:
        return Tokenizer.load(checkpoint)
    raise TokenizerError(f"{file} has no tokenizer of its own: give its directory with --tokenizer DIR, or the checkpoint")


def text_pieces(
    documents: Sequence[str], tokenizer: Tokenizer, *, length: int, vocab_size: int, max_tokens: int | None = None
) -> list[Piece]:
    """The documents' pieces of at most `length` inputs, the last one cut short where `max_tokens` are reached."""
    found, left = list[Piece](), max_tokens
    for number, document in enumerate(documents, 1):
        try:
            ids = encode_document(document, tokenizer, vocab_size)
        except TextError as error:
            raise TextError(f"document {number}: {error}") from None
        begin = ids[:1] if ids[0] == tokenizer.bos_id else []
        for piece in cut(ids, length, begin=begin):
            if left is None:
                found.append(piece)
                continue
            kept = min(left, piece.scored)
            found.append(Piece(piece.ids[: len(piece.ids) - piece.scored + kept], kept))
            left -= kept
            if left == 0:
                return found
    return found


def chunk_length(runner: Runner) -> int:
    """As many tokens as the longest prefill signature with logits takes, within what memory allows."""
    lengths = [spec.length for spec in runner.file.prefill if "logits" in spec.outputs]
    return max(1, min(max(lengths, default=CHUNK), LOGITS_AT_ONCE // runner.vocab_size))


def _chunks(piece: Piece, length: int) -> Iterator[tuple[tuple[int, ...], NDArray[np.int64]]]:
    """The piece's inputs, `length` at a time, and the tokens that follow the last of them, where those are scored."""
    inputs, unscored = piece.ids[:-1], len(piece.ids) - 1 - piece.scored
    for start in range(0, len(inputs), length):
        stop = min(start + length, len(inputs))
        yield inputs[start:stop], np.array(piece.ids[max(start, unscored) + 1 : stop + 1], np.int64)
