"""Files that take the mask as an input, as other exporters write them."""

import os
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import flatlm.convert as convert
from flatlm.errors import RuntimeFileError
from flatlm.generative.model_file import read_model_file
from flatlm.generative.runner import Runner
from flatlm.generative.signature_calls import causal_mask
from tests.generative.comparison import litert_torch_peer
from tests.generative.toy_model import LAYERS, H, K, S, Toy, V, lower_write

texts = st.lists(st.integers(0, V - 1), min_size=1, max_size=S)


class MaskedToy(Toy):
    """The toy with caches [1, S, K, H], which is told what to see."""

    def forward(self, tokens: Tensor, input_pos: Tensor, mask: Tensor, **caches: Tensor) -> dict[str, Tensor]:
        x = self.tokens[tokens] + self.places[input_pos][None]
        zero, first = torch.zeros((), dtype=torch.int32), input_pos[0].to(torch.int32)
        out = {}
        for i in range(LAYERS):
            q, k, v = self._heads(x, i)
            k, v = (x.transpose(1, 2) for x in (k, v))
            k = torch.ops.toy.write(caches[f"kv_cache_k_{i}"], k, [zero, first, zero, zero])
            v = torch.ops.toy.write(caches[f"kv_cache_v_{i}"], v, [zero, first, zero, zero])
            weights = torch.softmax(q @ k.permute(0, 2, 3, 1) / H**0.5 + mask, -1)
            x = x + (weights @ v.transpose(1, 2)).permute(0, 2, 1, 3).reshape(1, -1, K * H) @ self.output[i].T
            out |= {f"kv_cache_k_{i}": k, f"kv_cache_v_{i}": v}
        if tokens.shape[1] == 1 or self.prefill_logits:
            out["logits"] = x @ self.head.T
        return out


@pytest.fixture(scope="module")
def masked_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the weights of `toy`: signatures prefill_4, prefill_16 and decode."""
    lower_write()
    toy = MaskedToy(seed=0, prefill_logits=False).eval()
    caches = {f"kv_cache_{kind}_{i}": torch.zeros(1, S, K, H) for kind in "kv" for i in range(LAYERS)}
    signatures = convert.Signatures()
    for length in (4, 16, 1):
        sample = {"tokens": torch.zeros(1, length, dtype=torch.int32), "input_pos": torch.arange(length, dtype=torch.int32)}
        sample |= {"mask": torch.zeros(1, 1, length, S), **caches}
        signatures = signatures.signature(f"prefill_{length}" if length > 1 else "decode", toy, sample_kwargs=sample)
    path = tmp_path_factory.mktemp("masked") / "masked.tflite"
    signatures.convert().export(path)
    return path


@pytest.fixture(scope="module")
def masked(masked_file):
    return Runner.open(masked_file)


def test_the_file_is_understood(masked):
    assert (masked.cache_length, masked.prefill_lengths, masked.vocab_size) == (S, (4, 16), V)
    assert masked.most_rewound == S
    assert masked.file.decode.mask_slots == S


def test_a_mask_shows_a_token_itself_and_those_before_it():
    mask = causal_mask(np.arange(2, 4, dtype=np.int32), 5)
    assert (mask.shape, mask.dtype) == ((1, 1, 2, 5), np.float32)
    assert (mask[0, 0] == 0).tolist() == [[True, True, True, False, False], [True, True, True, True, False]]
    hidden = mask[mask != 0]
    assert np.isfinite(hidden).all() and (np.exp(hidden) == 0).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(0, V - 1), min_size=1, max_size=S), cut=st.integers(0, S), stale=st.lists(st.integers(0, V - 1), max_size=S)
)
def test_it_computes_what_the_maskless_model_does(masked, toy, runner, ids, cut, stale):
    for each in (masked, runner):
        each.rewind(0)
        each.prefill(stale)
        each.rewind(0)
        each.prefill(ids[:cut][:-1])
        each.prefill(ids[each.position : -1])
    got = masked.step(ids[-1])
    np.testing.assert_allclose(got, runner.step(ids[-1]), atol=1e-5)
    np.testing.assert_allclose(got, toy.reference(ids)[-1], atol=1e-5)


def with_mask(file: Path, path: Path, shape: list[int], type_: int = schema.TensorType.FLOAT32) -> Path:
    """The file with another kind of mask in decode."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(file.read_bytes(), 0))
    decode = next(item for item in model.signatureDefs if item.signatureKey == b"decode")
    index = next(item.tensorIndex for item in decode.inputs if item.name == b"mask")
    tensor = model.subgraphs[decode.subgraphIndex].tensors[index]
    tensor.shape, tensor.type = np.array(shape, np.int32), type_
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ([1, 1, 1, S], schema.TensorType.BOOL, r"signature decode takes a mask bool\[1, 1, 1, 48\]; what is added to scores is float32"),
        ([1, S], schema.TensorType.FLOAT32, r"signature decode takes a mask float32\[1, 48\]"),
        ([1, 1, 2, S], schema.TensorType.FLOAT32, r"signature decode takes a mask float32\[1, 1, 2, 48\]"),
        ([1, 1, 1, S + 1], schema.TensorType.FLOAT32, "signature decode takes a mask over 49 slots; its context has 48"),
    ],
)
def test_other_masks_are_refused(masked_file, tmp_path, shape, dtype, message):
    with pytest.raises(RuntimeFileError, match=rf"other\.tflite: {message}"):
        read_model_file(with_mask(masked_file, tmp_path / "other.tflite", shape, dtype))


@pytest.mark.slow
def test_litert_torchs_own_export(tmp_path):
    path = os.pathsep.join([str(litert_torch_peer.stand_in(tmp_path / "stand_in")), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, litert_torch_peer.__file__, str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True)
    expected = np.load(tmp_path / "expected.npz")
    ids = expected["ids"].tolist()
    with Runner.open(next(tmp_path.glob("*.tflite"))) as peer:
        assert (peer.cache_length, peer.prefill_lengths) == (litert_torch_peer.SLOTS, (litert_torch_peer.PREFILL,))
        assert peer.file.decode.mask_slots == litert_torch_peer.SLOTS
        np.testing.assert_allclose([peer.step(token) for token in ids], expected["logits"], atol=1e-5)
        peer.reset()
        peer.prefill(ids[:-1])
        np.testing.assert_allclose(peer.step(ids[-1]), expected["logits"][-1], atol=1e-5)
