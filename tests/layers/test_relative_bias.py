"""Relative position biases: buckets as transformers has them, and the table laid out for every length."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from flatlm.layers.encoder_decoder_config import RelativeBiasConfig
from flatlm.layers.relative_bias import RelativeBias, bucket

CONFIGS = [
    RelativeBiasConfig(buckets, distance, bidirectional)
    for buckets, distance in ((32, 128), (8, 16), (10, 11), (4, 3), (64, 1000))
    for bidirectional in (True, False)
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_offset_has_the_bucket_of_transformers(config: RelativeBiasConfig) -> None:
    offsets = torch.arange(-2000, 2001)
    expected = T5Attention._relative_position_bucket(offsets, config.bidirectional, config.buckets, config.max_distance)
    assert torch.equal(bucket(config, offsets), expected)
    assert int(expected.max()) < config.buckets


def relative(config: RelativeBiasConfig, longest: int) -> RelativeBias:
    module = RelativeBias(config, 3, longest)
    module.bias.data = torch.randn(config.buckets, 3, generator=torch.Generator().manual_seed(1))
    return module.requires_grad_(False)


@pytest.mark.parametrize("config", CONFIGS[:4], ids=str)
def test_all_tokens_of_a_text_have_the_biases_of_their_offsets(config: RelativeBiasConfig) -> None:
    longest = 40
    module = relative(config, longest)
    for length in (1, 2, 3, 17, 39, 40):
        offsets = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        expected = module.bias[bucket(config, offsets)].permute(2, 0, 1)
        assert torch.equal(module.between_all(torch.ones(2, length)), expected)


@pytest.mark.parametrize("config", CONFIGS[1:4:2], ids=str)
def test_tokens_have_the_biases_of_what_lies_before_them(config: RelativeBiasConfig) -> None:
    longest = 40
    module = relative(config, longest)
    for positions in ([0], [39], [5, 6, 7], list(range(40))):
        input_pos = torch.tensor(positions, dtype=torch.int32)
        offsets = torch.arange(longest)[None, :] - input_pos[:, None]
        expected = module.bias[bucket(config, offsets)].permute(2, 0, 1)
        seen = (offsets <= 0)[None].expand(3, -1, -1)
        assert torch.equal(module.before(input_pos, longest)[seen], expected[seen])
