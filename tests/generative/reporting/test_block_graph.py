"""The blocks that are told from a file's own names, and their picture."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from flatlm.cli import main
from flatlm.convert.signatures import signature_specs
from flatlm.errors import OutputError, RuntimeFileError
from flatlm.generative.reporting.block_graph import BlockKind, Part, Run, Stack, read_block_graph, stacks
from flatlm.generative.reporting.block_svg import draw, render
from flatlm.layers.config import MixtureConfig
from tests.models import export_fast, random_decoder, tiny_config

A, B, C = (BlockKind((Part(f"attention.{name}", (8, 8), "int8 per channel", 64),), ()) for name in "abc")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([A], [((A, 1), 1, 0)]),
        ([A] * 6, [((A, 1), 6, 0)]),
        ([A, B, B], [((A, 1), 1, 0), ((B, 1), 2, 1)]),
        ([A, B] * 3, [((A, 1), (B, 1), 3, 0)]),
        ([*[A] * 5, B] * 2 + [A, A], [((A, 5), (B, 1), 2, 0), ((A, 1), 2, 12)]),
        ([A, B, C], [((A, 1), 1, 0), ((B, 1), 1, 1), ((C, 1), 1, 2)]),
        ([A, A, B, A, A, B, C], [((A, 1), 2, 0), ((B, 1), 1, 2), ((A, 1), 2, 3), ((B, 1), 1, 5), ((C, 1), 1, 6)]),
    ],
)
def test_equal_blocks_and_patterns_are_drawn_once(kinds, expected):
    found = stacks(kinds)
    assert found == tuple(Stack(tuple(Run(*run) for run in runs), times, first) for *runs, times, first in expected)
    assert sum(stack.blocks for stack in found) == len(kinds)
    assert [stack.first for stack in found] == [sum(s.blocks for s in found[:i]) for i in range(len(found))]


def test_a_mixture_behind_a_dense_block(tmp_path):
    config = tiny_config(layers=3, window=5, bias=True)
    mixture = MixtureConfig(config.blocks[0].feed_forward, 4, 2)
    blocks = (config.blocks[1], *(replace(config.blocks[0], feed_forward=mixture) for _ in range(2)))
    model = random_decoder(replace(config, blocks=blocks), cache_length=48, longest_step=16)
    file = export_fast(model, signature_specs((16,), prefill_logits=False), tmp_path / "moe.tflite", "dynamic_int8")
    graph = read_block_graph(file)
    assert [part.name for part in graph.before] == ["embedding"] and [part.name for part in graph.after] == ["final_norm", "lm_head"]
    assert not graph.tied
    dense, sparse = graph.stacks
    assert (dense.blocks, dense.first, sparse.blocks, sparse.first) == (1, 0, 2, 1)
    parts = sparse.runs[0].kind.parts
    order = ["attention_norm", "attention.qkv", "attention.output", "feed_forward_norm", "feed_forward.router"]
    assert [part.name for part in parts] == [*order, "feed_forward.experts.gate_up", "feed_forward.experts.down"]
    assert [part.count for part in parts[-2:]] == [4, 4] and parts[-1].bytes == 4 * (32 * 64 + 32 * 4), "with four biases"
    assert parts[1].shape == (64, 32) and parts[1].scheme == "int8 per channel" and parts[1].bytes == 64 * 32 + 64 * 4
    slots = [stack.runs[0].kind.caches[0].shape[2] for stack in graph.stacks]
    assert slots == [48, 32], "a ring where there is a window"
    svg = render(graph)
    for said in ("blocks 1 to 2", "block 0", "experts.gate_up", "2 \u00d7 32 \u00d7 8", "float32, heads"):
        assert said in svg
    ElementTree.fromstring(svg)


def test_block_scales_count_and_a_tied_head_is_said(demo_bundle, tmp_path, capsys):
    graph = read_block_graph(demo_bundle)
    assert graph.tied and [stack.times for stack in graph.stacks] == [6] and graph.context == 64
    assert main(["inspect", str(demo_bundle), "--graph", str(tmp_path / "g.svg")]) == 0
    assert f"block graph: {tmp_path / 'g.svg'}" in capsys.readouterr().out
    svg = (tmp_path / "g.svg").read_text("utf-8")
    assert "the embedding&#x27;s weights" in svg and "llama, 1.31 M parameters, dynamic_int8" in svg


def test_names_are_only_text(demo_bundle, tmp_path):
    graph = read_block_graph(demo_bundle)
    evil = "<script>alert(1)</script>\u202e"
    part = Part(evil, (4, 4), evil, 16)
    svg = render(replace(graph, file=tmp_path / "<script>.tflite", manifest={"family": evil}, before=(part,)))
    assert "<script>" not in svg and "\u202e" not in svg
    ElementTree.fromstring(svg)


def test_a_file_of_another_tool_is_refused(tiny_file, tmp_path, capsys):
    with pytest.raises(RuntimeFileError, match=r"its weights are not named blocks\.<layer>"):
        read_block_graph(tiny_file)
    assert main(["inspect", str(tiny_file), "--graph", str(tmp_path / "g.svg")]) == 2
    assert "try --explorer" in capsys.readouterr().err and not (tmp_path / "g.svg").exists()


def test_the_picture_is_svg(demo_bundle, tmp_path):
    with pytest.raises(OutputError, match=r"g\.png: the block graph is drawn as SVG"):
        draw(read_block_graph(demo_bundle), tmp_path / "g.png")
