"""Prove an encoder's file: run it and the reference on the same texts, and hold it to its recipe's bound.

Texts of several lengths for each signature, so that it is judged with little padding and with much; the reference reads each text by
itself, unpadded. Logits are judged as distributions, as a decoder's are; where each answers yes or no by itself (several labels at once,
replaced tokens), as the distribution of that answer. Vectors (embeddings, hidden states) and numbers are judged by their squared error as
a part of the vector's square, or of the numbers' variance: it is, as the KL divergence is, of second order in the error, and is held to
the same bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError, TokenizerError
from flatlm.generative.encoders.encoder_file import EncoderFile
from flatlm.generative.encoders.reference import open_encoder_reference
from flatlm.generative.encoders.runner import EncoderRunner, Outputs
from flatlm.generative.evaluation.divergence import kl_divergence
from flatlm.generative.verify import SEED, VerificationReport, VerifyRequest, promised_bound
from flatlm.quantize.recipes import Bound
from flatlm.utilities.configs.encoder_tasks import QUESTION_ANSWERING, REPLACED_TOKENS, TASKS
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

LEAST_TEXTS = 32
"""So many, where each gives one distribution or one vector: a share of fewer says little."""
WORDS = """
the a of in to and that it was for on with as at by from not but what all were when one there can an your which their said if do
will each about how up out them then she many some so these would other into has more her two like him see time could no make than
first been water long little very after words called just where most know good year place live back give old new work never night
"""
"""Of which texts are made for the file and the reference to read."""


def judge(request: VerifyRequest) -> VerificationReport:
    """Compare an encoder's file with its checkpoint."""
    with EncoderRunner.open(request.file) as runner:
        task = runner.file.task if request.reading.task is None else TASKS.get(request.reading.task)
        if task != runner.file.task:
            raise RuntimeFileError(f"{request.file} was exported for the task {runner.file.task}, not {request.reading.task}")
        reading = replace(request.reading, task=task)
        _require_its_own(request, build_config(request.checkpoint, reading)[0], runner)
        reference = open_encoder_reference(request.checkpoint, lora=request.lora, reading=reading, against=request.against)
        tally = Tally.of(runner.file)
        for ids, types in _texts(request, runner):
            tally.add(reference.run(ids, types), runner.run(ids, types), len(ids))
            if request.progress is not None:
                request.progress("verify", min(tally.tokens, request.tokens), request.tokens)
            if tally.tokens >= request.tokens and tally.texts >= LEAST_TEXTS:
                break
        bound = promised_bound(request.file)
        return VerificationReport(
            reference.name,
            tally.max_abs_error,
            tally.mean_kl,
            tally.top1_agreement,
            tally.tokens,
            None,
            None,
            bound,
            tally.within(bound),
            mean_cosine=tally.mean_cosine,
            squared_error=tally.squared_error,
        )


def _require_its_own(request: VerifyRequest, config: Any, runner: EncoderRunner) -> None:
    """RuntimeFileError where the checkpoint cannot read what the file reads. An adapter may have grown the vocabulary."""
    file = runner.file
    own = "give the checkpoint it came from"
    if request.lora is None and file.vocab_size not in (0, config.vocab_size):
        raise RuntimeFileError(f"{file.path} has a vocabulary of {file.vocab_size}, {request.checkpoint} one of {config.vocab_size}: {own}")
    if config.max_positions < file.longest:
        raise RuntimeFileError(f"{file.path} reads {file.longest} tokens, {request.checkpoint} {config.max_positions}: {own}")
    if config.token_types != file.token_types:
        raise RuntimeFileError(f"{file.path} has {file.token_types} token types, {request.checkpoint} {config.token_types}: {own}")


@dataclass
class Tally:
    """What a file and its reference gave, added up. `yes_or_no`: each logit is the log odds of an answer of its own."""

    task: str
    yes_or_no: bool = False
    max_abs_error: float = 0.0
    tokens: int = 0
    texts: int = 0
    divergences: list[NDArray[np.float64]] = field(default_factory=list)
    agreements: list[NDArray[np.bool_]] = field(default_factory=list)
    cosines: list[NDArray[np.float64]] = field(default_factory=list)
    squared_errors: list[NDArray[np.float64]] = field(default_factory=list)
    numbers: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)
    """Outputs that are one number each, as of a regression: together they are one vector."""

    @classmethod
    def of(cls, file: EncoderFile) -> Self:
        """An empty one, for what the file gives."""
        return cls(file.task, file.multi_label or file.task == REPLACED_TOKENS)

    def add(self, expected: Outputs, got: Outputs, tokens: int) -> None:
        """One text's. RuntimeFileError where the file cannot have come from the checkpoint."""
        self.tokens, self.texts = self.tokens + tokens, self.texts + 1
        shapes = [{name: values.shape for name, values in outputs.items()} for outputs in (expected, got)]
        if shapes[0] != shapes[1]:
            raise RuntimeFileError(f"the file gives {shapes[1]}, the checkpoint {shapes[0]}: give the checkpoint it came from")
        for name, values in expected.items():
            error = np.abs(values - got[name])
            self.max_abs_error = max(self.max_abs_error, float(error.max()) if np.isfinite(error).all() else np.inf)
            self._compare(name, values, got[name])

    def _compare(self, name: str, expected: NDArray[Any], got: NDArray[Any]) -> None:
        if name == "logits" and self.task == QUESTION_ANSWERING:  # where the answer starts, and where it ends
            expected, got = expected.T, got.T
        if name == "logits" and self.yes_or_no:
            self.divergences.append(kl_divergence(_both_answers(expected), _both_answers(got)).reshape(-1))
            self.agreements.append(((expected > 0) == (got > 0)).reshape(-1))
        elif name == "logits" and expected.shape[-1] > 1:
            self.divergences.append(np.atleast_1d(kl_divergence(expected, got)))
            self.agreements.append(np.atleast_1d(expected.argmax(-1) == got.argmax(-1)))
        elif expected.shape[-1] > 1:
            self.cosines.append(np.atleast_1d(_cosine(expected, got)))
            self.squared_errors.append(np.atleast_1d(_squared_error(expected, got)))
        else:
            self.numbers.append((expected.reshape(-1), got.reshape(-1)))

    @property
    def mean_kl(self) -> float | None:
        return float(np.concatenate(self.divergences).mean()) if self.divergences else None

    @property
    def top1_agreement(self) -> float | None:
        return float(np.concatenate(self.agreements).mean()) if self.agreements else None

    @property
    def mean_cosine(self) -> float | None:
        cosines = [*self.cosines]
        if self.numbers:
            cosines.append(np.atleast_1d(_cosine(*(np.concatenate(side) for side in zip(*self.numbers, strict=True)))))
        return float(np.concatenate(cosines).mean()) if cosines else None

    @property
    def squared_error(self) -> float | None:
        errors = [*self.squared_errors]
        if self.numbers:  # about their mean: far from it, numbers of any error are nearly parallel
            expected, got = (np.concatenate(side).astype(np.float64) for side in zip(*self.numbers, strict=True))
            errors.append(np.atleast_1d(_squared_error(expected - expected.mean(), got - expected.mean())))
        return float(np.concatenate(errors).mean()) if errors else None

    def within(self, bound: Bound) -> bool:
        pairs = ((self.max_abs_error, bound.max_abs_error), (self.mean_kl, bound.mean_kl), (self.squared_error, bound.mean_kl))
        agreed = self.top1_agreement is None or bound.top1_agreement is None or self.top1_agreement >= bound.top1_agreement
        below = all(value is None or most is None or value <= most for value, most in pairs)
        return bool(np.isfinite(self.max_abs_error)) and agreed and below


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of vectors along the last dimension."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine: NDArray[np.float64] = (first * second).sum(-1) / np.maximum(lengths, 1e-30)
    return cosine


def _squared_error(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[np.float64]:
    """Of vectors along the last dimension, as a part of the expected one's square."""
    first, second = expected.astype(np.float64), got.astype(np.float64)
    error: NDArray[np.float64] = np.square(first - second).sum(-1) / np.maximum(np.square(first).sum(-1), 1e-30)
    return error


def _both_answers(logits: NDArray[Any]) -> NDArray[Any]:
    """Log odds [...] as the logits [..., 2] of yes and no."""
    return np.stack([logits, np.zeros_like(logits)], -1)


def _texts(request: VerifyRequest, runner: EncoderRunner) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and token types without end: the prompts, then texts for every signature that fill it, and that fill it in part."""
    generator = np.random.default_rng(SEED)
    source = _Source(request, runner, generator)
    for prompt in request.prompts:
        yield _typed(source.of(prompt), runner, generator)
    shortest = 1
    for length in runner.lengths:  # all of each once; afterwards the shortest are enough
        for count in sorted({shortest, (shortest + length + 1) // 2, length}):
            yield _typed(source.of_length(count), runner, generator)
        shortest = length + 1
    while True:
        yield _typed(source.of_length(int(generator.integers(1, runner.lengths[0] + 1))), runner, generator)


def _typed(ids: list[int], runner: EncoderRunner, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """With a second part that begins somewhere, where the model tells parts apart."""
    second = int(generator.integers(0, len(ids) + 1)) if runner.file.token_types > 1 else len(ids)
    return ids, [int(place >= second) for place in range(len(ids))]


class _Source:
    """Texts in the checkpoint's tokenizer's ids; random ids where it has none."""

    def __init__(self, request: VerifyRequest, runner: EncoderRunner, generator: np.random.Generator) -> None:
        self._longest, self._vocab_size, self._padding = runner.file.longest, runner.file.vocab_size, runner.file.pad_token_id
        self._generator = generator
        self._tokenizer: Tokenizer | None = None
        try:
            tokenizer = Tokenizer.load(request.checkpoint)
            if tokenizer.vocab_size <= runner.file.vocab_size:
                self._tokenizer = tokenizer
        except TokenizerError:
            if request.prompts:
                raise

    def of(self, prompt: str) -> list[int]:
        assert self._tokenizer is not None
        ids = self._tokenizer.encode(prompt)
        if not 0 < len(ids) <= self._longest:
            raise RuntimeFileError(f"the prompt {prompt[:40]!r} has {len(ids)} tokens; the file reads 1 to {self._longest}")
        return ids

    def of_length(self, count: int) -> list[int]:
        """So many ids: what begins and ends a text stays, words between are cut."""
        if self._tokenizer is None:
            return [int(i) + int(i >= self._padding) for i in self._generator.integers(0, self._vocab_size - 1, count)]
        ids = self._tokenizer.encode(" ".join(self._generator.choice(WORDS.split(), count)))
        return ids[:count] if count < 3 else [*ids[: count - 1], *ids[-1:]]
