"""Files with caches smaller than float32: they equal the eager model, and have the operators that the runtime does well, and no others."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import flatbuffer
from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.signatures import signature_specs
from flatlm.errors import ExportError
from flatlm.layers.config import CacheDtype, MaskConfig, MixtureConfig, ModelConfig
from flatlm.layers.kv_cache import KEY_UNIT, VALUE_UNIT
from flatlm.layers.model import Decoder
from tests.models import Signatures, export_fast, random_decoder, random_inputs, run_eager, tiny_config

SPECS = signature_specs((8,), prefill_logits=True)
TOLERANCE = 1e-3
"""Of logits of about 5: the digits of float16 products, whose sums may run in another order. A float32 cache's are 5e-3 to 0.3 away."""
Type = schema.TensorType


def every_kind() -> ModelConfig:
    """Grouped queries in a ring, ALiBi, a soft-cap with a clip, and a mixture: one block of each."""
    plain, ring = tiny_config(kv_heads=2).blocks[0], tiny_config(window=10).blocks[0]
    attention = plain.attention
    sloped = replace(plain, attention=replace(attention, rope=None, mask=MaskConfig(alibi_slopes=(0.5, 0.25, 0.125, 0.0625))))
    capped = replace(plain, attention=replace(attention, softcap=3.0, clip=1.5, num_kv_heads=4))
    mixed = replace(plain, feed_forward=MixtureConfig(plain.feed_forward, num_experts=4, experts_per_token=2))
    return replace(tiny_config(), blocks=(ring, sloped, capped, mixed))


@pytest.fixture(scope="module", params=[CacheDtype.FLOAT16, CacheDtype.INT8])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    model = random_decoder(every_kind(), cache_length=64, longest_step=8, cache=request.param)
    return model, export_fast(model, SPECS, tmp_path_factory.mktemp("small") / "model.tflite")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_file_equals_the_eager_model(exported, spec) -> None:
    """Caches that are full of noise, at the beginning, and where the ring has come round; the interpreter is the judge."""
    model, path = exported
    signatures = Signatures(path)
    for start in (0, 5, 30, 64 - spec.tokens):
        inputs = random_inputs(model, spec.tokens, start=start)
        got, expected = signatures.run(spec.name, inputs), run_eager(model, inputs, logits=spec.logits)
        assert got.keys() == expected.keys()
        for name, values in got.items():
            assert values.dtype == expected[name].dtype
            difference = np.abs(values.astype(np.float32) - expected[name].astype(np.float32))
            if values.dtype == np.int8:  # a count that falls between two may go either way
                assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3, (name, start)
            else:
                assert (difference <= TOLERANCE * np.maximum(np.abs(expected[name]), 1)).all(), (name, start)


def test_a_float32_cache_gives_other_logits(exported) -> None:
    """So the tolerance tells the dtypes apart."""
    model, path = exported
    wide = random_decoder(every_kind(), cache_length=64, longest_step=8)
    signatures, tokens = Signatures(path), {"tokens": np.arange(8, dtype=np.int32)[None], "input_pos": np.arange(8, dtype=np.int32)}
    small = {name: np.zeros_like(value) for name, value in random_inputs(model, 8, start=0).items()} | tokens
    large = {name: np.zeros_like(value) for name, value in random_inputs(wide, 8, start=0).items()} | tokens
    difference = np.abs(signatures.run("prefill_8", small)["logits"] - run_eager(wide, large, logits=True)["logits"]).max()
    least, most = {CacheDtype.FLOAT16: (2e-3, 0.02), CacheDtype.INT8: (0.02, 0.3)}[model.geometry.dtype]
    assert least <= difference <= most


def operators(path: Path) -> Iterator[tuple[str, str, list[Any], list[Any]]]:
    """Of every signature: its name, the operator's, its inputs and its outputs."""
    model = flatbuffer.parse(path.read_bytes())
    for entry in model.signatureDefs:
        graph = model.subgraphs[entry.subgraphIndex]
        for op in graph.operators:
            name = flatbuffer.BUILTIN_NAMES[model.operatorCodes[op.opcodeIndex].builtinCode]
            inputs, outputs = ([graph.tensors[i] for i in indices if i >= 0] for indices in (op.inputs, op.outputs))
            yield entry.signatureKey.decode(), name, inputs, outputs


def test_products_are_float16_in_decode_and_float32_in_prefill(exported) -> None:
    """Never of float32 with int8, which the runtime computes wrongly, nor of an int8 cache through DEQUANTIZE to float32."""
    _, path = exported
    products = 0
    for signature, name, inputs, outputs in operators(path):
        types = [tensor.type for tensor in (*inputs, *outputs)]
        if name == "BATCH_MATMUL":
            products += 1
            assert set(types) == {Type.FLOAT16 if signature == "decode" else Type.FLOAT32}
        elif name == "DEQUANTIZE":
            assert (signature, types) == ("decode", [Type.INT8, Type.FLOAT16])
        elif name in ("FULLY_CONNECTED", "SOFTMAX"):
            assert set(types) == {Type.FLOAT32}
    assert products == 2 * 4 * len(SPECS)


def test_counts_keep_their_unit_wherever_they_go(exported) -> None:
    model, path = exported
    seen = set()
    for _, name, inputs, outputs in operators(path):
        counts = [tensor for tensor in (*inputs, *outputs) if tensor.type == Type.INT8]
        units = {(tensor.quantization.scale.tolist()[0], tensor.quantization.zeroPoint.tolist()[0]) for tensor in counts}
        if counts:
            assert len(units) == 1 and units <= {(KEY_UNIT, 0), (VALUE_UNIT, 0)}
            seen.add(name)
    wanted = {"QUANTIZE", "DYNAMIC_UPDATE_SLICE", "CONCATENATION", "GATHER", "DEQUANTIZE", "CAST"}
    assert seen == (wanted if model.geometry.dtype is CacheDtype.INT8 else set())


def test_caches_are_updated_where_they_lie(exported) -> None:
    """Each cache input is read by nothing but its update, so that the runtime may write into it."""
    _, path = exported
    model = flatbuffer.parse(path.read_bytes())
    for entry in model.signatureDefs:
        graph = model.subgraphs[entry.subgraphIndex]
        caches = {item.tensorIndex: item.name.decode() for item in entry.inputs if item.name.startswith(b"kv_cache_")}
        readers = [index for op in graph.operators for index in op.inputs if index in caches]
        assert sorted(readers) == sorted(caches)
        assert [item.name for item in entry.outputs if item.name.startswith(b"kv_cache_")] == [name.encode() for name in caches.values()]


def test_the_generic_path_refuses() -> None:
    with pytest.raises(ExportError, match="float32 caches only; int8"):
        WholeDecoder(random_decoder(tiny_config(), cache=CacheDtype.INT8), SPECS[0])
