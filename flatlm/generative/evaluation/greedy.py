"""How long a file's greedy text stays the reference's own."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flatlm.generative.reference import Reference
from flatlm.generative.runner import Runner, Writer
from flatlm.generative.sampling import Sampler

PROMPT_TOKENS = 16


@dataclass(frozen=True)
class GreedyDivergence:
    """Over `prompts` prompts, `tokens` greedy tokens each at most."""

    prompts: int
    tokens: int
    equal_to_the_end: int
    """Prompts whose texts never part."""
    median_first_divergence: float
    """Equal tokens before the first difference; those of texts that never part are all of them."""
    first_divergence: tuple[int, ...]
    """The same of each prompt."""


def prompts_of(documents: Sequence[Sequence[int]], count: int, *, room: int) -> list[list[int]]:
    """The beginnings of the first `count` documents, of 16 tokens, or half the document, or half a context of `room` tokens."""
    return [list(ids[: max(1, min(PROMPT_TOKENS, len(ids) // 2, room // 2))]) for ids in documents[:count]]


def prompt_key(prompt: Sequence[int], count: int) -> str:
    """Names a prompt's greedy answer of `count` tokens."""
    return hashlib.sha256(np.array([count, *prompt], np.int64).tobytes()).hexdigest()[:32]


def greedy_tokens(reference: Reference, prompt: Sequence[int], count: int) -> list[int]:
    """The reference's next `count` tokens, each the likeliest."""
    reference.reset()
    greedy, found = Sampler(), list[int]()
    logits = reference.feed(prompt)[-1]
    while len(found) < count:
        found.append(greedy.pick(logits))
        if len(found) < count:
            logits = reference.feed(found[-1:])[-1]
    return found


def equal_tokens(runner: Writer, prompt: Sequence[int], expected: Sequence[int]) -> int:
    """How many of the file's own greedy tokens after the prompt are the expected ones, before the first that is not."""
    runner.reset()
    runner.prefill(prompt[:-1])
    token = prompt[-1]
    for equal, wanted in enumerate(expected):
        logits = runner.step(token)
        if int(np.argmax(logits)) != wanted or not np.isfinite(logits[wanted]):  # a NaN is the largest
            return equal
        token = wanted
    return len(expected)


def greedy_divergence(
    runner: Runner, prompts: Sequence[Sequence[int]], answers: Mapping[str, Sequence[int]], count: int
) -> GreedyDivergence:
    """Of the file, against the reference's `answers` of `count` tokens by `prompt_key`."""
    found = tuple(equal_tokens(runner, prompt, answers[prompt_key(prompt, count)]) for prompt in prompts)
    return GreedyDivergence(len(prompts), count, sum(equal == count for equal in found), float(np.median(found)), found)
