"""Prove a file: run it against the reference, on prompts and on text that the reference writes, and hold it to its recipe's bound.

Both read the same tokens in step (teacher-forced). The next token is drawn from the reference at temperature 1, so the text is as
the model would write it. Half-way through each text the file's cache is emptied and filled again through its prefill signatures,
so that what they leave in the cache is judged as well as decode.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from flatlm.errors import RuntimeFileError, TokenizerError
from flatlm.generative.evaluation.divergence import kl_divergence, log_softmax
from flatlm.generative.evaluation.greedy import equal_tokens, greedy_tokens
from flatlm.generative.inspect import read_manifest
from flatlm.generative.reference import Reference, open_reference, require_its_code
from flatlm.generative.runner import Runner, Writer
from flatlm.progress import Progress
from flatlm.quantize.recipes import Bound, Recipe
from flatlm.utilities.reading import AS_IT_SAYS, Reading
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

DEFAULT_TOKENS = 256
DEFAULT_PROMPTS = ("Once upon a time", "The first thing to know is", "In the year 2031,", "def main():")
CACHE_COSTS: Mapping[str, Bound] = MappingProxyType(
    {"float16": Bound(mean_kl=0.0005, top1_agreement=0.99), "int8": Bound(mean_kl=0.005, top1_agreement=0.97)}
)
"""What a KV cache that is not float32 may cost a healthy file, beside its recipe. Two small models lose 7e-6 and 1.8e-3 by int8."""
GREEDY_TOKENS = 32
SEED = 20260
Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class VerificationReport:
    """How far a file is from its reference, over `tokens_compared` tokens.

    KL in nats, of the file's distribution from the reference's; `greedy_tokens_equal` of `greedy_tokens` in each side's own greedy text.
    None: the file gives no distributions, or writes no text. `mean_cosine`: of the vectors that an encoder gives.
    `squared_error`: theirs, as a part of the vectors' squares; of numbers, as a part of their variance.
    """

    against: str
    max_abs_error: float
    mean_kl: float | None
    top1_agreement: float | None
    tokens_compared: int
    greedy_tokens_equal: int | None
    greedy_tokens: int | None
    bound: Bound
    passed: bool
    mean_cosine: float | None = None
    squared_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class VerifyRequest:
    """What is compared with what: at least `tokens` tokens of texts that begin with the prompts (none: default ones).

    `lora` is the directory of the adapter that was merged into the file, if one was; `against` a reference's name (None: the best one).
    """

    file: Path
    checkpoint: Path
    lora: Path | None = None
    reading: Reading = AS_IT_SAYS
    prompts: tuple[str, ...] = ()
    tokens: int = DEFAULT_TOKENS
    against: str | None = None
    progress: Progress | None = None


JUDGES = {
    "decoder": "flatlm.generative.verify",
    "encoder": "flatlm.generative.encoders.verify",
    "infilling": "flatlm.generative.infilling.judge",
    "encoder-decoder": "flatlm.generative.encoder_decoders.verify",
}
"""Which module has the `judge` for a kind of file, as its manifest says it; a file that says nothing is a decoder's."""


def verify(
    file: Path,
    checkpoint: Path,
    *,
    lora: Path | None = None,
    reading: Reading = AS_IT_SAYS,
    prompts: Sequence[str] = (),
    tokens: int = DEFAULT_TOKENS,
    against: str | None = None,
    progress: Progress | None = None,
) -> VerificationReport:
    """Compare a file of any kind with the checkpoint it came from (`VerifyRequest`). Raises a FlatlmError where either cannot be run."""
    request = VerifyRequest(file, checkpoint, lora, reading, tuple(prompts), tokens, against, progress)
    if tokens < 1:
        raise RuntimeFileError(f"--tokens {tokens}: compare at least one")
    require_its_adapter(file, lora)
    manifest = read_manifest(file)
    require_its_code(manifest, file, checkpoint, reading)
    kind = manifest.get("kind", "decoder")
    if kind not in JUDGES:
        raise RuntimeFileError(f"{file}: its manifest says that it is a {kind!r}; known are {', '.join(JUDGES)}: update FlatLM")
    report: VerificationReport = importlib.import_module(JUDGES[kind]).judge(request)
    return report


def judge(request: VerifyRequest) -> VerificationReport:
    """Compare a decoder's file with its checkpoint."""
    file, checkpoint, tokens, progress = request.file, request.checkpoint, request.tokens, request.progress
    with Runner.open(file) as runner:
        length, against = runner.cache_length, request.against
        reference = open_reference(checkpoint, length=length, against=against, lora=request.lora, reading=request.reading)
        require_the_same_vocabulary(runner, reference, checkpoint)
        starts = _prompt_ids(checkpoint, request.prompts, runner)
        tally = Tally()
        generator, round_number = np.random.default_rng(SEED), 0
        while tally.tokens < tokens:
            start = starts[round_number % len(starts)]
            share = -(-tokens // len(starts))
            compare_text(runner, reference, start, min(share, tokens - tally.tokens), generator, tally, progress, tokens)
            round_number += 1
        equal, compared = compare_greedy(runner, reference, starts[0])
        bound = promised_bound(file)
        return VerificationReport(
            reference.name,
            tally.max_abs_error,
            tally.kl / tally.tokens,
            tally.agreed / tally.tokens,
            tally.tokens,
            equal,
            compared,
            bound,
            tally.within(bound),
        )


@dataclass
class Tally:
    """Next-token distributions of a file and its reference, added up."""

    max_abs_error: float = 0.0
    kl: float = 0.0
    agreed: int = 0
    tokens: int = 0

    def add(self, expected: Array, got: Array) -> None:
        if not np.isfinite(got).all():
            self.max_abs_error = self.kl = float("inf")
        else:
            self.max_abs_error = max(self.max_abs_error, float(np.abs(expected - got).max()))
            self.kl += float(kl_divergence(expected, got))
        self.agreed += int(expected.argmax() == got.argmax())
        self.tokens += 1

    def within(self, bound: Bound) -> bool:
        return (
            np.isfinite(self.kl).item()
            and (bound.max_abs_error is None or self.max_abs_error <= bound.max_abs_error)
            and (bound.mean_kl is None or self.kl / self.tokens <= bound.mean_kl)
            and (bound.top1_agreement is None or self.agreed / self.tokens >= bound.top1_agreement)
        )


def compare_text(
    runner: Writer,
    reference: Reference,
    start: Sequence[int],
    count: int,
    generator: np.random.Generator,
    tally: Tally,
    progress: Progress | None,
    total: int,
) -> None:
    """Compare `count` tokens of one text, or as many as the context holds."""
    reference.reset()
    runner.reset()
    ids = list(start)
    expected = reference.feed(ids)[-1]
    runner.prefill(ids[:-1])
    count = min(count, runner.cache_length - len(ids) + 1)
    for done in range(count):
        if done == count // 2 and done:
            runner.reset()
            runner.prefill(ids[:-1])
        tally.add(expected, runner.step(ids[-1]))
        if progress is not None:
            progress("verify", tally.tokens, total)
        if done + 1 < count:
            probabilities = np.exp(log_softmax(expected))
            ids.append(int(generator.choice(len(probabilities), p=probabilities / probabilities.sum())))
            expected = reference.feed(ids[-1:])[-1]


def compare_greedy(runner: Writer, reference: Reference, start: Sequence[int]) -> tuple[int, int]:
    """How many of each side's own greedy tokens are equal before the first difference, and out of how many."""
    count = min(GREEDY_TOKENS, runner.cache_length - len(start) + 1)
    return equal_tokens(runner, start, greedy_tokens(reference, start, count)), count


def require_its_adapter(file: Path, lora: Path | None) -> None:
    """RuntimeFileError for a file with an adapter merged into it, where none is given for the reference."""
    merged = read_manifest(file).get("lora")
    if lora is None and isinstance(merged, dict):
        raise RuntimeFileError(f"{file} has the adapter {merged.get('name')!r} merged into it: give its directory with --lora")


def require_the_same_vocabulary(runner: Writer, reference: Reference, checkpoint: Path) -> None:
    """RuntimeFileError where the file cannot have come from the checkpoint. The reference has read a token afterwards."""
    size = reference.feed([0]).shape[-1]
    if size != runner.vocab_size:
        raise RuntimeFileError(
            f"{runner.file.path} has a vocabulary of {runner.vocab_size}, {checkpoint} one of {size}: give the checkpoint it came from"
        )


def _prompt_ids(checkpoint: Path, prompts: Sequence[str], runner: Runner) -> list[list[int]]:
    """The prompts' ids, or those of default ones, which take up at most half of the context."""
    return prompt_ids(checkpoint, prompts, longest=runner.cache_length, room=runner.cache_length // 2, vocab_size=runner.vocab_size)


def prompt_ids(checkpoint: Path, prompts: Sequence[str], *, longest: int, room: int, vocab_size: int) -> list[list[int]]:
    """The ids of prompts, of `longest` tokens at most.

    Without prompts those of default ones that fit in `room`, or random tokens where the checkpoint has no tokenizer (or none for them).
    """
    if prompts:
        tokenizer = Tokenizer.load(checkpoint)
        given = [tokenizer.encode(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, given, strict=True):
            if not 0 < len(ids) <= longest:
                raise RuntimeFileError(f"the prompt {prompt[:40]!r} has {len(ids)} tokens; the context holds 1 to {longest}")
        return given
    texts: list[list[int]] = []
    try:
        tokenizer = Tokenizer.load(checkpoint)
        texts = [tokenizer.encode(prompt) for prompt in DEFAULT_PROMPTS]
    except TokenizerError:
        pass  # random tokens then
    usable = [text for text in texts if 0 < len(text) <= room and max(text) < vocab_size]
    if usable:
        return usable
    generator = np.random.default_rng(SEED)
    return [generator.integers(0, vocab_size, max(1, min(8, room))).tolist() for _ in DEFAULT_PROMPTS]


def promised_bound(file: Path) -> Bound:
    """What the file's own recipe promises, less what its caches may cost; nothing, where its manifest does not say."""
    manifest = read_manifest(file)
    recipe: Mapping[str, Any] | None = manifest.get("recipe")
    bound = Bound() if recipe is None else Recipe.from_dict(recipe).bound
    return with_cache(bound, CACHE_COSTS.get(manifest.get("kv_cache_dtype", "")))


def with_cache(bound: Bound, cost: Bound | None) -> Bound:
    """The bound of a recipe, loosened by a cache's cost. What is measured only stays so."""
    if cost is None or bound.measured_only:
        return bound
    kl, agreement = cost.mean_kl or 0.0, cost.top1_agreement or 1.0
    return Bound(None, (bound.mean_kl or 0.0) + kl, (1.0 if bound.top1_agreement is None else bound.top1_agreement) - (1 - agreement))
