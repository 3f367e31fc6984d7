"""Prove a file of an encoder with a decoder: both read a text, and write in step, teacher-forced, what the reference would write about it.

Texts are so long that each signature that reads is judged: the prompts as they are, then the same repeated until a signature is full.
"""

from collections.abc import Sequence

import numpy as np

from flatlm.generative.encoder_decoders.reference import ReadingReference, open_reference
from flatlm.generative.encoder_decoders.runner import EncoderDecoderRunner
from flatlm.generative.verify import (
    SEED,
    Tally,
    VerificationReport,
    VerifyRequest,
    compare_greedy,
    compare_text,
    promised_bound,
    prompt_ids,
    require_the_same_vocabulary,
)


def judge(request: VerifyRequest) -> VerificationReport:
    """Compare a file with the checkpoint that it came from."""
    with EncoderDecoderRunner.open(request.file) as runner:
        length = max(runner.encoder_length, runner.cache_length)
        reference = open_reference(request.checkpoint, length=length, against=request.against, reading=request.reading)
        sources, start, tally = _sources(request, runner), [runner.file.writing.start], Tally()
        generator, share, number = np.random.default_rng(SEED), -(-request.tokens // len(sources)), 0
        while tally.tokens < request.tokens:
            _read(runner, reference, sources[number % len(sources)])
            if not number:
                require_the_same_vocabulary(runner, reference, request.checkpoint)
            count = min(share, request.tokens - tally.tokens)
            compare_text(runner, reference, start, count, generator, tally, request.progress, request.tokens)
            number += 1
        _read(runner, reference, sources[0])
        equal, compared = compare_greedy(runner, reference, start)
        bound = promised_bound(request.file)
        mean_kl, agreement = tally.kl / tally.tokens, tally.agreed / tally.tokens
        return VerificationReport(
            reference.name, tally.max_abs_error, mean_kl, agreement, tally.tokens, equal, compared, bound, tally.within(bound)
        )


def _read(runner: EncoderDecoderRunner, reference: ReadingReference, ids: Sequence[int]) -> None:
    runner.read(ids)
    reference.read(ids)


def _sources(request: VerifyRequest, runner: EncoderDecoderRunner) -> list[list[int]]:
    """What is read: the given prompts only, or default ones, and one for each signature that none of them fills."""
    longest = runner.encoder_length
    if request.prompts:
        return prompt_ids(request.checkpoint, request.prompts, longest=longest, room=longest, vocab_size=runner.vocab_size)
    texts = prompt_ids(request.checkpoint, (), longest=longest, room=longest, vocab_size=runner.vocab_size)
    own = [spec.length for spec in runner.file.encoders]
    return [*texts, *((texts[0] * length)[:length] for length in own)]
