"""Exported encoders with a decoder against transformers: logits, greedy texts, what each signature holds."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema

from flatlm.generative.encoder_decoders.generate import generate
from flatlm.generative.encoder_decoders.runner import EncoderDecoderRunner
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.verify import VerificationReport, verify
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from tests.examples.cases.encoder_decoders import CASES
from tests.examples.references import Case, decide
from tests.examples.test_encoder_decoder_parity import TOLERANCE, make, texts

ENCODER_LENGTHS = (6, 24)
CONTEXT = 36
QUICK = ("t5-v1_1", "bart-plain")
EXPORTED = [pytest.param(case, id=str(case), marks=[] if str(case) in QUICK else [pytest.mark.slow]) for case in CASES if case.exported]


class Ids:
    """Stands for a tokenizer where only ids count."""

    eos_ids = ()

    def stream_decoder(self, context: Any = ()) -> "Ids":
        return self

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Exported:
    """A case's reference, and files of it by recipe: one compilation for all."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.reference = make(case, folder / "checkpoint")

    def file(self, recipe: str, checkpoint: str = "checkpoint") -> Path:
        path = self.folder / f"{checkpoint}_{recipe}.tflite"
        if not path.exists():
            export(ExportRequest(self.folder / checkpoint, path, get_recipe(recipe), ENCODER_LENGTHS, CONTEXT))
        return path

    def report(self, recipe: str, checkpoint: str = "checkpoint") -> VerificationReport:
        return verify(self.file(recipe, checkpoint), self.folder / checkpoint, tokens=160, against="transformers")


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    yield Exported(request.param, tmp_path_factory.mktemp(str(request.param)))


@torch.inference_mode()
def transformers_greedy(reference: Any, ids: list[int], count: int) -> list[int]:
    """What transformers' own loop writes, without the token it begins with, and without one that ends it."""
    found = reference.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, num_beams=1)[0, 1:].tolist()
    return found[:-1] if found[-1] == reference.generation_config.eos_token_id else found


def test_logits_are_transformers(exported: Exported) -> None:
    """In float32 to 1e-4, with the same 32 greedy tokens; every signature is among what is judged."""
    exact = exported.report("none")
    assert exact.max_abs_error <= TOLERANCE, exact
    assert exact.tokens_compared >= 160
    assert exact.greedy_tokens_equal == exact.greedy_tokens == 32
    assert exact.passed


def test_int8_stays_within_its_bound(exported: Exported) -> None:
    decided = deepcopy(exported.reference)
    decide(decided)
    decided.save_pretrained(exported.folder / "decided")
    rounded = exported.report("dynamic_int8", "decided")
    assert rounded.passed, rounded
    assert rounded.mean_kl > 0  # it was rounded


def test_texts_of_every_length_are_read_alike(exported: Exported) -> None:
    """Whichever signature reads it, and however much of it is padding: the keys and values are the text's own, and zero behind it."""
    vocab = exported.reference.config.vocab_size
    with EncoderDecoderRunner.open(exported.file("none"), threads=1) as runner:
        for length in range(1, ENCODER_LENGTHS[-1] + 1):
            read, _ = texts(vocab, length, seed=length)
            written = texts(vocab, 5, seed=length)[0][0].tolist()
            runner.read(read[0].tolist())
            got = np.stack([runner.step(token) for token in written])
            with torch.inference_mode():
                expected = exported.reference(input_ids=read.long(), decoder_input_ids=torch.tensor([written])).logits[0].numpy()
            assert np.abs(got - expected).max() <= TOLERANCE, length
            if length <= ENCODER_LENGTHS[0]:
                assert not runner.read_cross("cross_k_0")[:, :, ENCODER_LENGTHS[0] :].any()
                assert not runner.read_cross("cross_v_1")[:, :, :, ENCODER_LENGTHS[0] :].any()


def test_greedy_texts_are_transformers(exported: Exported) -> None:
    """With its rules of first and last tokens: 32 tokens, or fewer where the model ends by itself; the same text again after another."""
    reference = exported.reference
    with EncoderDecoderRunner.open(exported.file("none"), threads=1) as runner:
        for forced in (None, 7):
            reference.generation_config.forced_bos_token_id = forced
            runner.file = _with_first(runner.file, forced)
            for seed, length in ((1, 4), (2, 17), (3, 24), (1, 4)):
                ids = texts(reference.config.vocab_size, length, seed=seed)[0][0].tolist()
                found = generate(runner, Ids(), ids, GenerationConfig(max_new_tokens=32))
                assert list(found.token_ids) == transformers_greedy(reference, ids, 32), (forced, seed)
                assert found.prompt_token_ids == tuple(ids)
        reference.generation_config.forced_bos_token_id = None


def _with_first(file: Any, first: int | None) -> Any:
    return replace(file, writing=replace(file.writing, forced_first=first))


def test_each_signature_holds_its_own_weights_and_shares_the_table(exported: Exported) -> None:
    """No step reads the encoder again: `decode` has none of its weights, and no projection of keys and values of its output."""
    model = schema.ModelT.InitFromPackedBuf(exported.file("none").read_bytes(), 0)
    weights = {}
    for definition in model.signatureDefs:
        graph = model.subgraphs[definition.subgraphIndex]
        stored = [tensor for tensor in graph.tensors if model.buffers[tensor.buffer].size]
        weights[definition.signatureKey.decode()] = {tensor.name.decode(): tensor.buffer for tensor in stored}
    decode = weights.pop("decode")
    assert weights.keys() == {f"encode_{ENCODER_LENGTHS[0]}", "encode"}
    layers = range(
        len(exported.reference.get_decoder().layers if hasattr(exported.reference, "model") else exported.reference.decoder.block)
    )
    projections = {f"decoder.blocks.{i}.cross.attention.key_value.weight" for i in layers}
    assert not [name for name in decode if name.startswith("encoder.") or "key_value" in name]
    assert {f"decoder.blocks.{i}.cross.attention.query.weight" for i in layers} <= decode.keys()
    for encode in weights.values():
        assert {name.removesuffix(".bias") for name in encode if name.startswith("decoder.")} - projections == {
            name.removesuffix(".weight") for name in projections if name.replace(".weight", ".bias") in encode
        }
        assert projections <= encode.keys()
        assert encode["embedding.weight"] == decode["embedding.weight"]  # one buffer
