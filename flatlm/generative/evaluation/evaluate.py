"""How well an exported file foretells held-out text: perplexity of the file itself, in the runtime, and how near its checkpoint it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from flatlm import __version__
from flatlm.errors import RuntimeFileError, TextError
from flatlm.generative.evaluation.greedy import GreedyDivergence, greedy_divergence, greedy_tokens, prompt_key, prompts_of
from flatlm.generative.evaluation.journal import Journal, journal_directory
from flatlm.generative.evaluation.reference_cache import TOP, ReferenceCache, reference_directory, top_that_fits
from flatlm.generative.evaluation.scores import Divergence, Tokens, divergence, perplexity
from flatlm.generative.evaluation.scoring import KeptReference, RunningFile, Subject, chunk_length, score_windows
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.inspect import read_manifest
from flatlm.generative.reference import Reference, open_reference, reference_name, require_its_code
from flatlm.generative.runner import Runner
from flatlm.generative.verify import require_its_adapter, require_the_same_vocabulary
from flatlm.progress import Progress
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.digests import digest_of, file_digest, weight_states
from flatlm.utilities.documents import Piece, encode_document, windows
from flatlm.utilities.reading import AS_IT_SAYS, Reading
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

GREEDY_PROMPTS = 16
GREEDY_TOKENS = 32


@dataclass(frozen=True)
class EvaluationRequest:
    """A file, and the texts that it is to foretell, each begun with BOS where the tokenizer does so."""

    file: Path
    documents: Sequence[str]
    checkpoint: Path | None = None
    """The reference reads the same tokens, and the file is compared with it."""
    lora: Path | None = None
    """The adapter that was merged into the file."""
    against: str | None = None
    tokenizer: Path | None = None
    """Its directory; by default the bundle's own, else the checkpoint's."""
    context: int | None = None
    """Tokens of a window; by default as many as the file's context has."""
    stride: int | None = None
    """How far each next window is from the one before; None: each document's first window only."""
    max_tokens: int | None = None
    """Stop when so many have been foretold."""
    greedy_prompts: int = GREEDY_PROMPTS
    """With a checkpoint: how many documents' beginnings are continued greedily; 0: none."""
    work: Path | None = None
    """Where it is saved as it goes, until it is finished; by default in the user's cache."""
    reference_cache: Path | None = None
    """Where what the reference says is kept for other files; by default in the user's cache."""
    reference_top: int = TOP
    reading: Reading = AS_IT_SAYS
    """Tokens of each of the reference's distributions that are kept; 0: nothing is kept."""


@dataclass(frozen=True)
class KeptReferenceFacts:
    """What it means that the reference's distributions came, in part, from disk. KL in nats, means over all tokens."""

    top: int
    """Of each distribution, so many tokens were kept; the others as one."""
    tokens: int
    """So many of the tokens were compared with what was kept; the others with the reference itself."""
    mean_kl_missed: float | None
    """How much less the mean KL was for that, of the file for which the reference was last run; None where it never finished."""
    mean_kl_most: float
    """The mean KL of this file is at most that."""


@dataclass(frozen=True)
class EvaluationReport:
    """Over `tokens` tokens, each foretold from the true ones before it in its window. In nats, but for the bits."""

    tokens: int
    nll_per_token: float
    perplexity: float
    context: int
    stride: int | None
    documents: int
    """That were read, in part at least."""
    cut_documents: int = 0
    """Documents longer than the context, of which the rest was left out, for want of a stride."""
    bits_per_byte: float | None = None
    """Of the text's UTF-8 bytes: comparable where tokenizers differ."""
    against: str | None = None
    divergence: Divergence | None = None
    greedy: GreedyDivergence | None = None
    kept_reference: KeptReferenceFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what was not measured; the divergence's figures stand beside the others."""
        fields = asdict(self)
        fields |= fields.pop("divergence") or {}
        return {name: value for name, value in fields.items() if value is not None}


def evaluate(request: EvaluationRequest, *, progress: Progress | None = None) -> EvaluationReport:
    """Run the file on the texts, teacher-forced, and the reference beside it where a checkpoint is given.

    Interrupted, it goes on where it was when it is asked again for the same. Raises TextError, TokenizerError, RuntimeFileError and other
    FlatlmErrors, which say what is wrong and the way out.
    """
    _require_possible(request)
    with Runner.open(request.file) as runner:
        runner.require_left_to_right()
        context = _context(request, runner)
        tokenizer = file_tokenizer(request.file, request.tokenizer, request.checkpoint)
        ids = encoded(request.documents, tokenizer, vocab_size=runner.vocab_size)
        pieces = text_pieces(ids, context, request.stride, max_tokens=request.max_tokens)
        reference = None if request.checkpoint is None else _LazyReference(request, request.checkpoint, runner)
        cache = None if reference is None else _open_cache(request, reference, pieces, runner.vocab_size)
        journal = Journal.open(request.work or journal_directory(), _key(request, pieces, reference))
        try:
            kept = None if reference is None else KeptReference(reference, cache)
            scored = score_windows(
                RunningFile(runner), pieces, reference=kept, chunk=chunk_length(runner), journal=journal, progress=progress
            )
            report = _report(request, context, ids, tokenizer, scored)
            if reference is not None:
                greedy = _greedy(request, reference, cache, runner, ids)
                facts = _facts(request.file, cache, np.concatenate(scored))
                report = replace(report, against=reference.name, divergence=divergence(scored), greedy=greedy, kept_reference=facts)
            journal.close(finished=True)
        finally:
            journal.close()
            if cache is not None:
                cache.close()
        return report


def measure(subject: Subject, pieces: Sequence[Piece], *, reference: Reference | None = None, chunk: int = 64) -> EvaluationReport:
    """The same figures of anything that reads text, on windows that fit its context; nothing is kept on disk."""
    kept = None if reference is None else KeptReference(reference, None)
    scored = score_windows(subject, pieces, reference=kept, chunk=chunk)
    nll = float(np.concatenate(scored)["nll"].mean())
    report = EvaluationReport(sum(map(len, scored)), nll, perplexity(nll), max(len(piece.ids) for piece in pieces), None, 0)
    return report if reference is None else replace(report, against=reference.name, divergence=divergence(scored))


def default_stride(text: Path, context: int) -> int | None:
    """Where nobody says: a .txt is one long text, read in windows that overlap by half; of documents each one's first window is read."""
    return max(1, context // 2) if text.suffix == ".txt" else None


def encoded(documents: Sequence[str], tokenizer: Tokenizer, *, vocab_size: int) -> list[list[int]]:
    """Each document's ids. Raises TextError, with the document's number, where there is nothing to foretell."""
    if not documents:
        raise TextError("there is no text to evaluate on: give at least one document")
    found = []
    for number, document in enumerate(documents, 1):
        try:
            found.append(encode_document(document, tokenizer, vocab_size))
        except TextError as error:
            raise TextError(f"document {number}: {error}") from None
    return found


def text_pieces(documents: Sequence[Sequence[int]], context: int, stride: int | None, *, max_tokens: int | None = None) -> list[Piece]:
    """The windows of all documents, the last one cut short where `max_tokens` are reached."""
    found, left = list[Piece](), max_tokens
    for ids in documents:
        for piece in windows(ids, context, stride):
            if left is None:
                found.append(piece)
                continue
            kept = min(left, piece.scored)
            found.append(Piece(piece.ids[: len(piece.ids) - piece.scored + kept], kept))
            left -= kept
            if left == 0:
                return found
    return found


class _LazyReference:
    """The checkpoint's reference, loaded when it is first run: what it says may all be known already."""

    def __init__(self, request: EvaluationRequest, checkpoint: Path, runner: Runner) -> None:
        self._request, self._checkpoint, self._runner = request, checkpoint, runner
        self._model: Reference | None = None
        path = runner.file.path
        require_its_code(read_manifest(path), path, checkpoint, request.reading)
        self.name = reference_name(
            checkpoint, length=runner.cache_length, against=request.against, lora=request.lora, reading=request.reading
        )

    def reset(self) -> None:
        if self._model is None:
            request, length = self._request, self._runner.cache_length
            self._model = open_reference(self._checkpoint, length=length, against=self.name, lora=request.lora, reading=request.reading)
            require_the_same_vocabulary(self._runner, self._model, self._checkpoint)
        self._model.reset()

    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        assert self._model is not None
        return self._model.feed(ids)

    def fingerprint(self) -> dict[str, object]:
        """What decides on its distributions, and on whether the file is compared with them at all."""
        with open_checkpoint(self._checkpoint, lora=self._request.lora) as store:
            config = self._checkpoint / "config.json"
            return {
                "checkpoint": store.fingerprint(),  # which reads samples of the weights alone
                "files": [weight_states(path) for path in (self._checkpoint, self._request.lora) if path is not None],
                "config": file_digest(config) if config.is_file() else "",
                "name": self.name,
                **({} if self._request.reading == AS_IT_SAYS else {"reading": self._request.reading.fingerprint()}),
                "vocabulary": self._runner.vocab_size,
                **{name: version(name) for name in ("torch", "transformers")},
                **({"flatlm": __version__, "context": self._runner.cache_length} if self.name == "eager" else {}),
            }


def _require_possible(request: EvaluationRequest) -> None:
    if request.max_tokens is not None and request.max_tokens < 1:
        raise TextError(f"--max-tokens {request.max_tokens}: foretell at least one")
    if request.greedy_prompts < 0 or request.reference_top < 0:
        raise RuntimeFileError("--greedy-prompts and --reference-top are 0 or more")
    if request.checkpoint is not None:
        require_its_adapter(request.file, request.lora)
    elif request.lora is not None:
        raise RuntimeFileError(f"--lora {request.lora}: an adapter is for the reference, so give its checkpoint too")


def _context(request: EvaluationRequest, runner: Runner) -> int:
    context = runner.cache_length if request.context is None else request.context
    if not 2 <= context <= runner.cache_length:
        raise RuntimeFileError(
            f"--context {context}: {request.file} has a context of {runner.cache_length} tokens; choose 2 to {runner.cache_length}, or "
            "export it with a larger --kv-cache-len"
        )
    if request.stride is not None and not 0 < request.stride < context:
        raise RuntimeFileError(f"--stride {request.stride}: choose 1 to {context - 1}, less than the context")
    return context


def _open_cache(request: EvaluationRequest, reference: _LazyReference, pieces: Sequence[Piece], vocab_size: int) -> ReferenceCache | None:
    if request.reference_top == 0:
        return None
    top = top_that_fits(sum(piece.scored for piece in pieces), vocab_size, top=request.reference_top)
    key = digest_of({"reference": reference.fingerprint(), "pieces": _pieces_digest(pieces)})
    return ReferenceCache.open(request.reference_cache or reference_directory(), key, top)


def _key(request: EvaluationRequest, pieces: Sequence[Piece], reference: _LazyReference | None) -> str:
    """Names an evaluation: the file's content, the tokens, the reference."""
    against = None if reference is None else reference.fingerprint()
    return digest_of(
        {"file": file_digest(request.file), "pieces": _pieces_digest(pieces), "against": against, "top": request.reference_top, "form": 1}
    )


def _pieces_digest(pieces: Sequence[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.array([len(piece.ids), piece.scored, *piece.ids], np.int64).tobytes())
    return digest.hexdigest()


def _report(
    request: EvaluationRequest,
    context: int,
    documents: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    scored: Sequence[Tokens],
) -> EvaluationReport:
    tokens = np.concatenate(scored)
    nll = float(tokens["nll"].sum())
    read, cut, size = _foretold(request, context, documents, tokenizer)
    return EvaluationReport(
        len(tokens),
        nll / len(tokens),
        perplexity(nll / len(tokens)),
        context,
        request.stride,
        read,
        cut,
        nll / np.log(2).item() / size if size else None,
    )


def _foretold(request: EvaluationRequest, context: int, documents: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Documents that were read, those of them that were cut at the context, and UTF-8 bytes of what was foretold.

    That is the documents without what was left out, and without their first token where that is not BOS.
    """
    read, cut, size, left = 0, 0, 0, request.max_tokens
    for text, ids in zip(request.documents, documents, strict=True):
        read += 1
        count = len(ids) if request.stride is not None else min(len(ids), context)
        cut += count < len(ids)
        if left is not None:
            count = min(count, left + 1)
            left -= count - 1
        size += len((text if count == len(ids) else tokenizer.decode(ids[:count])).encode())
        if ids[0] != tokenizer.bos_id:
            size -= len(tokenizer.decode(ids[:1]).encode())
        if left == 0:
            break
    return read, cut, size


def _greedy(
    request: EvaluationRequest, reference: _LazyReference, cache: ReferenceCache | None, runner: Runner, documents: Sequence[Sequence[int]]
) -> GreedyDivergence | None:
    prompts = prompts_of(documents, request.greedy_prompts, room=runner.cache_length)
    if not prompts:
        return None
    count = min(GREEDY_TOKENS, runner.cache_length - max(map(len, prompts)) + 1)
    answers = {} if cache is None else cache.greedy()
    missing = {key: prompt for prompt in prompts if (key := prompt_key(prompt, count)) not in answers}
    answers |= {key: greedy_tokens(reference, prompt, count) for key, prompt in missing.items()}
    if cache is not None and missing:
        cache.keep_greedy(answers)
    return greedy_divergence(runner, prompts, answers, count)


def _facts(file: Path, cache: ReferenceCache | None, tokens: Tokens) -> KeptReferenceFacts | None:
    """None where all was compared with the reference itself."""
    if cache is None:
        return None
    from_disk = np.isnan(tokens["kl_missed"])
    if not from_disk.any():
        cache.keep_missed(max(0.0, float(tokens["kl_missed"].mean())), file.name)
        return None
    return KeptReferenceFacts(cache.top, int(from_disk.sum()), cache.missed(), float(tokens["kl_most"].mean()))
