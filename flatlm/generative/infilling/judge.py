"""Proves a file that fills blanks: contexts with one blank and with several, filled as the reference would, both reading in step.

The next token is drawn from the reference at temperature 1. Half-way through each text the file's cache is emptied and filled again: the
context by its one call, and what was read of the spans through the prefill signatures too, so that they are judged as well as decode.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flatlm.errors import ConfigError, RuntimeFileError, TokenizerError
from flatlm.generative.evaluation.divergence import log_softmax
from flatlm.generative.infilling.fill import Context, SpecialTokens
from flatlm.generative.infilling.reference import InfillingReference
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.verify import GREEDY_TOKENS, SEED, Tally, VerificationReport, VerifyRequest, promised_bound
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

DEFAULT_CONTEXTS = (
    "Ng is an adjunct professor at [MASK] (formerly associate professor).",
    "The first thing to know is [sMASK] That is why it matters.",
    "北京故宫是中国[MASK]非物质文化遗产,建于[MASK]。",
    "Once upon a time [gMASK]",
)


@dataclass(frozen=True)
class Text:
    """What is filled: a context, the places of its blanks, and the token that begins each answer."""

    context: tuple[int, ...]
    masks: tuple[int, ...]
    start: int


def judge(request: VerifyRequest) -> VerificationReport:
    """Compare a file that fills blanks with its checkpoint. Raises a FlatlmError where either cannot be run."""
    if request.against == "transformers":
        raise ConfigError("--against transformers: it has no class for GLM's blank infilling; --against eager is what there is")
    with InfillingRunner.open(request.file) as runner:
        reference = InfillingReference(request.checkpoint, length=runner.cache_length, lora=request.lora, reading=request.reading)
        if reference.vocab_size != runner.vocab_size:
            raise RuntimeFileError(
                f"{request.file} has a vocabulary of {runner.vocab_size}, {request.checkpoint} one of {reference.vocab_size}: give the "
                "checkpoint it came from"
            )
        texts = _texts(request, runner)
        tally, generator, number = Tally(), np.random.default_rng(SEED), 0
        while tally.tokens < request.tokens:
            count = min(-(-request.tokens // len(texts)), request.tokens - tally.tokens)
            _compare(runner, reference, texts[number % len(texts)], count, generator, tally)
            if request.progress is not None:
                request.progress("verify", tally.tokens, request.tokens)
            number += 1
        equal, compared = _compare_greedy(runner, reference, texts[0])
        bound = promised_bound(request.file)
        kl, agreed = tally.kl / tally.tokens, tally.agreed / tally.tokens
        passed = tally.within(bound)
        return VerificationReport(reference.name, tally.max_abs_error, kl, agreed, tally.tokens, equal, compared, bound, passed)


def _compare(
    runner: InfillingRunner, reference: InfillingReference, text: Text, count: int, generator: np.random.Generator, tally: Tally
) -> None:
    """Compare `count` tokens over a text's blanks, or as many as the file's context holds."""
    reference.read_context(text.context)
    runner.read_context(text.context)
    count = min(count, runner.cache_length - len(text.context))
    share, done = -(-count // len(text.masks)), 0
    read: list[tuple[int, list[int]]] = []
    for mask in text.masks:
        reference.begin_span(mask)
        runner.begin_span(mask)
        token, within = text.start, list[int]()
        read.append((mask, within))
        while len(within) < share and done < count:
            if done == count // 2 and done:
                _refill(runner, text, read)
            expected = reference.feed([token])[0]
            tally.add(expected, runner.step(token))
            within.append(token)
            done += 1
            probabilities = np.exp(log_softmax(expected))
            token = int(generator.choice(len(probabilities), p=probabilities / probabilities.sum()))


def _refill(runner: InfillingRunner, text: Text, read: list[tuple[int, list[int]]]) -> None:
    """Read a text again, as far as it was read."""
    runner.read_context(text.context)
    for mask, tokens in read:
        runner.begin_span(mask)
        runner.prefill(tokens)


def _compare_greedy(runner: InfillingRunner, reference: InfillingReference, text: Text) -> tuple[int, int]:
    """How many of each side's own likeliest tokens for the first blank are equal before the first difference, and out of how many."""
    count = min(GREEDY_TOKENS, runner.cache_length - len(text.context))
    sides = list[list[int]]()
    for side in (runner, reference):
        side.read_context(text.context)
        side.begin_span(text.masks[0])
        found, token = list[int](), text.start
        for _ in range(count):
            logits = side.step(token) if isinstance(side, InfillingRunner) else side.feed([token])[0]
            token = int(np.argmax(logits)) if np.isfinite(logits).all() else -1 - len(sides)
            found.append(token)
            if token < 0:
                break
        sides.append(found)
    equal = next((i for i, (ours, theirs) in enumerate(zip(*sides, strict=False)) if ours != theirs), min(map(len, sides)))
    return equal, count


def _texts(request: VerifyRequest, runner: InfillingRunner) -> list[Text]:
    """The prompts' contexts; without prompts, default ones, or random ones where the checkpoint has no tokenizer (or none for them)."""
    if request.prompts:
        found = _contexts(Tokenizer.load(request.checkpoint), request.prompts)
        for prompt, text in zip(request.prompts, found, strict=True):
            if len(text.context) > runner.longest_context or len(text.context) >= runner.cache_length:
                raise RuntimeFileError(
                    f"the prompt {prompt[:40]!r} has {len(text.context)} tokens; {request.file} reads contexts of up to "
                    f"{min(runner.longest_context, runner.cache_length - 1)}"
                )
        return found
    usable = _default_texts(request.checkpoint, runner)
    if usable:
        return usable
    generator, length = np.random.default_rng(SEED), max(1, min(8, runner.longest_context, runner.cache_length // 2))
    places = [(length // 2,), (length - 1,), tuple(sorted({length // 3, 2 * length // 3})), (0,)]
    tokens = [tuple(generator.integers(0, runner.vocab_size, length).tolist()) for _ in places]
    return [Text(context, masks, context[0]) for context, masks in zip(tokens, places, strict=True)]


def _default_texts(checkpoint: Path, runner: InfillingRunner) -> list[Text]:
    try:
        texts = _contexts(Tokenizer.load(checkpoint), DEFAULT_CONTEXTS)
    except TokenizerError:
        return []
    room = min(runner.longest_context, runner.cache_length // 2)
    return [text for text in texts if len(text.context) <= room and max(*text.context, text.start) < runner.vocab_size]


def _contexts(tokenizer: Tokenizer, prompts: tuple[str, ...]) -> list[Text]:
    start = SpecialTokens.of(tokenizer).start_of_piece
    contexts = [Context.of(tokenizer, prompt) for prompt in prompts]
    return [Text(context.token_ids, context.masks, start) for context in contexts]
