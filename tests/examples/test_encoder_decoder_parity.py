"""Encoders with a decoder against transformers: tiny models, every parameter random, read once and written step by step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.layers.encoder_decoder import EncoderDecoder
from flatlm.utilities.example import build_model
from tests.examples.cases.encoder_decoders import CASES, OWN_HEADS
from tests.examples.references import Case, make_reference

TOLERANCE = 1e-4
LENGTH = 32
STEPS = ([20], [1] * 20, [7, 1, 1, 11])
"""How many of 20 ids the decoder reads at once."""


def make(case: Case, directory: Path) -> Any:
    """The reference, saved; what transformers keeps in buffers, or ties though checkpoints have it apart, is random too."""
    reference = make_reference(case, directory)
    generator = torch.Generator().manual_seed(5)
    if str(case) in OWN_HEADS:
        table = reference.get_input_embeddings().weight
        reference.lm_head.weight = torch.nn.Parameter(case.spread * torch.randn(table.shape, generator=generator))
    if hasattr(reference, "final_logits_bias"):
        reference.final_logits_bias.normal_(generator=generator)
    reference.save_pretrained(directory)
    return reference


def texts(vocab: int, *lengths: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids [B, T] of texts of these lengths, padded by id 1 to the longest, and their mask [B, T] float32."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (len(lengths), max(lengths)), generator=generator, dtype=torch.int32)
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).float()
    return torch.where(mask > 0, ids, 1), mask


@torch.inference_mode()
def in_steps(model: EncoderDecoder, read: torch.Tensor, mask: torch.Tensor, written: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Logits [B, T, V] of an eager model that reads once, and writes a few ids at a time."""
    cross, caches = model.encode(read, mask), model.empty_caches(batch=len(read))
    encoder_mask = torch.nn.functional.pad(mask, (0, model.lengths.encoder - mask.shape[1]))
    position, out = 0, []
    for step in steps:
        positions = torch.arange(position, position + step, dtype=torch.int32)
        logits, caches = model.decode(written[:, position : position + step], positions, encoder_mask, cross, caches)
        out.append(logits)
        position += step
    return torch.cat(out, 1)


@torch.inference_mode()
def eager_error(reference: Any, directory: Path, *lengths: int) -> float:
    """The largest difference of a logit from the reference's, of texts of these lengths in one batch, however they are written."""
    model = build_model(directory, kv_cache_max_len=LENGTH)
    read, mask = texts(model.config.vocab_size, *lengths)
    written, _ = texts(model.config.vocab_size, *[sum(STEPS[0])] * len(lengths), seed=4)
    expected = reference(input_ids=read.long(), attention_mask=mask.long(), decoder_input_ids=written.long()).logits
    assert float(expected.std()) > 0.1  # logits that are all alike would prove nothing
    return max(float((in_steps(model, read, mask, written, steps) - expected).abs().max()) for steps in STEPS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_logits_are_transformers(case: Case, tmp_path: Path) -> None:
    """A text alone, and texts of different lengths in one batch."""
    reference = make(case, tmp_path)
    assert eager_error(reference, tmp_path, 23) <= TOLERANCE
    assert eager_error(reference, tmp_path, 5, LENGTH, 1) <= TOLERANCE
