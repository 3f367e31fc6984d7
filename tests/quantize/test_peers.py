"""The integers of ai-edge-quantizer: weights that take the generic path through litert-torch must not come out otherwise."""

import numpy as np
import pytest
import torch

from flatlm.quantize.encode import decode, encode
from flatlm.quantize.schemes import SCHEMES

peer = pytest.importorskip("ai_edge_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor")
qtyping = pytest.importorskip("ai_edge_quantizer.qtyping")


@pytest.mark.parametrize("name", ["dynamic_int8", "dynamic_int4_channel", "dynamic_int4_block32", "dynamic_int4_block128"])
def test_integers_and_scales_are_those_of_ai_edge_quantizer(name: str) -> None:
    scheme = SCHEMES[name]
    weight = (torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 64)[:, None]).to(torch.bfloat16)
    block = scheme.block_size or 512
    grouped = weight.float().reshape(64, -1, block).numpy()
    granularity = {None: "CHANNELWISE", 32: "BLOCKWISE_32", 128: "BLOCKWISE_128"}[scheme.block_size]
    bits = {"int8": 8, "int4": 4}[scheme.storage]
    low, high = grouped.min(2, keepdims=True), grouped.max(2, keepdims=True)
    zero, scale = peer.tensor_zp_scale_from_min_max(low, high, bits, True, qtyping.QuantGranularity[granularity])
    parameters = qtyping.UniformQuantParams(num_bits=bits, quantized_dimension=None, scale=scale, zero_point=zero)
    integers = peer.uniform_quantize(grouped, parameters).astype(np.float32)

    encoded = encode(weight, scheme)
    assert encoded.scales is not None
    np.testing.assert_array_equal(encoded.scales.astype(np.float32).reshape(-1), scale.reshape(-1))
    np.testing.assert_array_equal(decode(encoded, scheme, weight.shape).numpy(), (integers * scale).reshape(64, 512))
