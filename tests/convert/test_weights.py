"""The weights' part of a file: every chunk in its place, whatever the chunks are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flatlm.convert.in_memory import InMemory
from flatlm.convert.weights import ALIGNMENT, WeightLayout
from flatlm.errors import RecipeError
from flatlm.quantize import encode as encoder
from flatlm.quantize.recipes import RECIPES, get_recipe
from flatlm.utilities.calibration.calibrate import with_assumed_ranges

SHAPES = {"embedding.weight": (50, 128), "blocks.0.attention_norm.weight": (128,), "blocks.0.feed_forward.down.weight": (33, 256)}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_written_in_chunks_is_the_encoding_of_the_whole(recipe: str, threads: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "CHUNK_ELEMENTS", 700)
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    with_ranges = with_assumed_ranges(get_recipe(recipe), list(SHAPES))
    layout = WeightLayout({name: InMemory(value) for name, value in values.items()}, with_ranges)
    at, progress = 192, []
    with (tmp_path / "part").open("w+b") as file:
        scales = layout.write(file.fileno(), at, threads=threads, progress=lambda stage, done, total: progress.append((done, total)))
    content = (tmp_path / "part").read_bytes()
    assert len(content) == at + layout.size
    for name, placed in layout.weights.items():
        whole = encoder.encode(values[name].reshape(placed.matrix), placed.scheme)
        begin = at + placed.data_offset
        assert placed.data_offset % ALIGNMENT == 0
        assert content[begin : begin + placed.data_size] == whole.data.tobytes()
        if placed.scales_offset is not None:
            begin = at + placed.scales_offset
            assert content[begin : begin + placed.block_scales_size] == whole.scales.tobytes()
        elif placed.channel_scales is not None:
            assert np.array_equal(scales[name], whole.scales)
    assert progress[-1] == (sum(value.numel() for value in values.values()),) * 2
    assert scales.keys() == {name for name, placed in layout.weights.items() if placed.channel_scales}


def test_a_block_that_does_not_divide_is_refused_before_anything_is_read() -> None:
    with pytest.raises(RecipeError, match=r"blocks\.0\.feed_forward\.down\.weight"):
        WeightLayout({"blocks.0.feed_forward.down.weight": InMemory(torch.zeros(4, 172))}, get_recipe("dynamic_int4_block32"))
