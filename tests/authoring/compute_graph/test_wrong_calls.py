"""What an author writes wrongly is one line: where, which call, which data or weight, which shapes, and what may have been meant."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flatlm import ComputeGraph
from flatlm.authoring.compute_graph.builder import build_flow
from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.errors import CustomModelError

HERE = Path(__file__)
SHAPES = {
    "wte.weight": (48, 32),
    "norm.weight": (32,),
    "up.weight": (64, 32),
    "up.bias": (63,),
    "out.weight": (48, 64),
    "o.weight": (32, 32),
}


def build(body: Callable[[ComputeGraph], None], *, config: dict[str, object] | None = None, rest: bool = True) -> FlowConfig:
    """A flow whose first call is call 1 of `body`; `rest`: followed by what makes a model of it."""

    class Written(ComputeGraph):
        def build(self) -> None:
            self.config.setdefault("max_positions", 32)
            body(self)
            if rest:
                attend(self)
                self.Linear(self.data["read"], self.weight["out.weight"], None, self.data["logits"])

    return build_flow(Written, config or {}, SHAPES, HERE)


def attend(g: ComputeGraph, i: int = 0, **other: object) -> None:
    data, weight = g.data, g.weight
    g.Embedding(data["inputIds"], weight["wte.weight"], data["x"])
    for name in "qkv":
        g.Linear(data["x"], weight["o.weight"], None, data[name])
        g.ExpandHead(data[name], 8)
    given = {
        "q": data["q"],
        "k": data["pastKey."][i],
        "v": data["pastValue."][i],
        "curk": data["k"],
        "curv": data["v"],
        "original": data["x"],
        "mask": data["attentionMask"],
        "output": data["a"],
        "seqLens": data["seqLens"],
        "scale": 0.3,
    }
    g.FusedAttention(**{**given, **other})  # type: ignore[arg-type]
    g.Linear(data["a"], weight["up.weight"], None, data["read"])


def embedded(g: ComputeGraph) -> None:
    g.Embedding(g.data["inputIds"], g.weight["wte.weight"], g.data["x"])


def widened(g: ComputeGraph) -> None:
    """Y [1, T, 64] from x."""
    g.Linear(g.data["x"], g.weight["up.weight"], None, g.data["y"])


def split(g: ComputeGraph) -> None:
    """Y [1, 1, 32] from x."""
    g.SplitLastTokenStates(g.data["x"], g.data["seqLens"], g.data["y"])


def two(second: Callable[[ComputeGraph], None]) -> Callable[[ComputeGraph], None]:
    """The call, after an embedding into x [1, T, 32]."""

    def both(g: ComputeGraph) -> None:
        embedded(g)
        second(g)

    return both


def test_the_model_that_errors_are_made_of_is_right() -> None:
    config = build(lambda g: None)
    assert config.vocab_size == 48 and len(config.blocks) == 1


WRONG = {
    "shapes": (
        two(lambda g: g.Linear(g.data["x"], g.weight["out.weight"], None, g.data["y"])),
        'call 2, Linear(data["x"], weight["out.weight"], None, data["y"]): '
        'data["x"] is [1, T, 32], and weight["out.weight"] [48, 64] takes [..., 64]',
    ),
    "bias": (
        two(lambda g: g.Linear(g.data["x"], g.weight["up.weight"], g.weight["up.bias"], g.data["y"])),
        'weight["up.bias"] is [63], and weight["up.weight"] [64, 32] gives [..., 64]',
    ),
    "weight": (
        two(lambda g: g.Linear(g.data["x"], g.weight["upp"][".weight"], None, g.data["y"])),
        'weight["upp.weight"] is not in the checkpoint; did you mean weight["up.weight"]?',
    ),
    "dimensions": (two(lambda g: g.RMSNorm(g.data["x"], g.weight["up.weight"], 1e-5, g.data["y"])), "a weight of RMSNorm has 1 dimensions"),
    "norm": (
        two(lambda g: (widened(g), g.RMSNorm(g.data["y"], g.weight["norm.weight"], 1e-5, g.data["y"]))),
        'call 3, RMSNorm(data["y"], weight["norm.weight"], 1e-05, data["y"]): data["y"] is [1, T, 64], and weight["norm.weight"] [32]',
    ),
    "unwritten": (
        two(lambda g: g.Silu(g.data["xs"], g.data["y"])),
        'data["xs"] is read before anything is written to it; did you mean data["x"]?',
    ),
    "input": (
        two(lambda g: g.Silu(g.data["attentionMask"], g.data["y"])),
        'data["attentionMask"] is an input, and cannot be computed with',
    ),
    "written_input": (two(lambda g: g.Silu(g.data["x"], g.data["sin"])), 'data["sin"] is an input: write to another name'),
    "unequal": (
        two(lambda g: (widened(g), g.AddTo(g.data["y"], g.data["x"]))),
        'data["y"] is [1, T, 64], data["x"] [1, T, 32]: only equal shapes can be added',
    ),
    "last": (
        two(lambda g: (g.SplitLastTokenStates(g.data["x"], g.data["seqLens"], g.data["y"]), g.MulTo(g.data["x"], g.data["y"]))),
        'data["x"] is [1, T, 32], data["y"] [1, 1, 32]: only equal shapes can be multiplied',
    ),
    "last_of_a_product": (
        two(lambda g: (split(g), g.Linear(g.data["y"], g.weight["o.weight"], None, g.data["z"]), g.AddTo(g.data["z"], g.data["x"]))),
        'data["z"] is [1, 1, 32], data["x"] [1, T, 32]: only equal shapes can be added',
    ),
    "last_of_a_norm": (
        two(lambda g: (split(g), g.RMSNorm(g.data["y"], g.weight["norm.weight"], 1e-5, g.data["z"]), g.AddTo(g.data["z"], g.data["x"]))),
        'data["z"] is [1, 1, 32], data["x"] [1, T, 32]',
    ),
    "last_of_heads": (
        two(lambda g: (split(g), g.ExpandHead(g.data["y"], 8), attend(g, q=g.data["y"]))),
        'data["y"] holds the last token only: positions and caches need all of them',
    ),
    "heads": (
        two(lambda g: g.ExpandHead(g.data["x"], 5)),
        'data["x"] is [1, T, 32], whose last dimension is not a multiple of headDim = 5',
    ),
    "no_heads": (two(lambda g: turn(g)), 'data["x"] is [1, T, 32]; it must be [1, T, heads, H]: call ExpandHead before'),
    "swapped": (
        two(lambda g: (g.ExpandHead(g.data["x"], 8), turn(g, sin="cos", cos="sin"))),
        'data["cos"] is given where data["sin"] must be',
    ),
    "odd_heads": (two(lambda g: (g.ExpandHead(g.data["x"], 1), turn(g))), 'data["x"] is [1, T, 32, 1]: heads of an even width turn'),
    "ids": (
        lambda g: g.Embedding(g.data["x"], g.weight["wte.weight"], g.data["y"]),
        'data["x"] is not a list of ids: give data["inputIds"]',
    ),
    "seq_lens": (
        two(lambda g: g.SplitLastTokenStates(g.data["x"], g.data["x"], g.data["y"])),
        'data["x"] is given where data["seqLens"] must be',
    ),
    "caches": (lambda g: attend(g, 2), 'data["pastKey.1"] is used by no call: caches are numbered 0, 1, ... without gaps'),
    "twice": (lambda g: (attend(g), attend(g)), 'data["pastKey.0"] belongs to call 8: each layer has caches of its own'),
    "other_value": (lambda g: attend(g, v=g.data["pastValue.3"]), 'data["pastValue.3"] is given where data["pastValue.0"] must be'),
    "no_cache": (lambda g: attend(g, k=g.data["x"]), 'data["x"] is not a cache of keys: give data["pastKey."][i], for i = 0, 1, ...'),
    "mask": (lambda g: attend(g, mask=g.data["x"]), 'data["x"] is given where data["attentionMask"] must be'),
    "mask_type": (lambda g: attend(g, maskType=2), "maskType = 2 is not supported: 0 is, where a token sees those before it"),
    "widths": (
        lambda g: (attend(g, 0), widened(g), g.ExpandHead(g.data["y"], 16), attend(g, 1, q=g.data["y"])),
        'data["y"] is [1, T, 4, 16], data["k"] [1, T, 4, 8], data["v"] [1, T, 4, 8]: heads must have one width',
    ),
    "data_for_weight": (
        two(lambda g: g.RMSNorm(g.data["x"], "norm.weight", 1e-5, g.data["y"])),
        "'norm.weight' is not a weight: use weight[\"name\"]",
    ),
    "text_for_data": (two(lambda g: g.Silu("x", g.data["y"])), 'call 2, Silu(x, data["y"]): \'x\' is not data: use data["name"]'),
    "number": (two(lambda g: g.RMSNorm(g.data["x"], g.weight["norm.weight"], None, g.data["y"])), "None is not a number"),
    "whole": (two(lambda g: g.ExpandHead(g.data["x"], 6.5)), "6.5 is not a whole number"),
    "operator": (
        two(lambda g: g.Sulu(g.data["x"], g.data["y"])),
        "there is no operator Sulu: did you mean Silu? there are AddTo, DataTypeAs,",
    ),
}


def turn(g: ComputeGraph, sin: str = "sin", cos: str = "cos") -> None:
    g.LlamaRotatePosition2D(g.data["x"], g.data["positionIds"], g.data[sin], g.data[cos], 4)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_named(name: str) -> None:
    body, said = WRONG[name]
    with pytest.raises(CustomModelError) as raised:
        build(body)
    message = str(raised.value)
    assert said in message
    line = int(re.match(rf"{HERE.name}:(\d+): ", message).group(1))  # type: ignore[union-attr]
    assert 0 < line <= len(HERE.read_text().splitlines())
    assert "\n" not in message


def test_the_line_is_the_calls_own() -> None:
    line = inspect.currentframe().f_lineno + 3  # type: ignore[union-attr]

    def body(g: ComputeGraph) -> None:
        g.Silu(g.data["nothing"], g.data["y"])

    with pytest.raises(CustomModelError, match=rf"^{HERE.name}:{line}: call 1, Silu"):
        build(body)


RESULTS = {
    "no_logits": (lambda g: attend(g), {}, 'build() wrote nothing to data["logits"], which is the result'),
    "near": (two(lambda g: g.Silu(g.data["x"], g.data["logit"])), {}, 'the result; did you mean data["logit"]?'),
    "heads": (
        two(lambda g: (g.Silu(g.data["x"], g.data["logits"]), g.ExpandHead(g.data["logits"], 8))),
        {},
        "is [1, T, 4, 8]; the result is",
    ),
    "no_cache": (two(lambda g: g.Silu(g.data["x"], g.data["logits"])), {}, "build() calls FusedAttention nowhere"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_must_come_of_it(name: str) -> None:
    body, config, said = RESULTS[name]
    with pytest.raises(CustomModelError) as raised:
        build(body, config=config, rest=False)
    assert said in str(raised.value)


POSITIONS = [
    ({"max_position_embeddings": 64}, 'self.config["max_positions"] = self.config["max_position_embeddings"]'),
    ({"seq_length": 64}, 'self.config["max_positions"] = self.config["seq_length"]'),
    ({}, 'build() must set self.config["max_positions"], which config.json has not'),
    ({"max_positions": "64"}, "= '64' must be a whole number of tokens, 2 or more"),
]


@pytest.mark.parametrize(("config", "said"), POSITIONS)
def test_build_must_say_how_many_positions_there_are(config: dict[str, object], said: str) -> None:
    class Forgetful(ComputeGraph):
        def build(self) -> None:
            embedded(self)

    with pytest.raises(CustomModelError) as raised:
        build_flow(Forgetful, config, SHAPES, HERE)
    assert said in str(raised.value)


def test_max_positions_of_config_json_are_enough() -> None:
    class Silent(ComputeGraph):
        def build(self) -> None:
            attend(self)
            self.Linear(self.data["read"], self.weight["out.weight"], None, self.data["logits"])

    assert build_flow(Silent, {"max_positions": 77}, SHAPES, HERE).max_positions == 77


def test_rotations_that_halves_cannot_do_are_refused() -> None:
    def partial(g: ComputeGraph) -> None:
        embedded(g)
        g.ExpandHead(g.data["x"], 8)
        turn(g)

    for config, said in (
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor makes 4 of 8 entries turn"),
        ({"rope_scaling": {"rope_type": "liner", "factor": 2.0}}, '"liner"'),
    ):
        with pytest.raises(CustomModelError, match="call 3, LlamaRotatePosition2D") as raised:
            build(partial, config=config)
        assert said in str(raised.value)


def test_a_missing_head_is_the_embedding_only_of_a_tied_checkpoint() -> None:
    def tied(g: ComputeGraph) -> None:
        attend(g)
        g.Linear(g.data["a"], g.weight["lm_head.weight"], g.weight["lm_head.bias"], g.data["logits"])

    assert build(tied, rest=False).tied_head
    assert build(tied, rest=False, config={"tie_word_embeddings": True}).tied_head
    with pytest.raises(CustomModelError, match=r'weight\["lm_head\.weight"\] is not in the checkpoint'):
        build(tied, rest=False, config={"tie_word_embeddings": False})


@pytest.mark.parametrize("given", ["*.inv_freq", ("a", 3), None])
def test_ignored_tensors_are_a_tuple_of_patterns(given: object) -> None:
    class Sparing(ComputeGraph):
        ignored_tensors = given  # type: ignore[assignment]

        def build(self) -> None:
            attend(self)
            self.Linear(self.data["read"], self.weight["out.weight"], None, self.data["logits"])

    with pytest.raises(CustomModelError) as raised:
        build_flow(Sparing, {"max_positions": 32}, SHAPES, HERE)
    said = f"Sparing.ignored_tensors = {given!r} must be a tuple of patterns: ignored_tensors = ('*.inv_freq',)"
    assert said in str(raised.value)


def test_a_table_of_positions_has_a_row_for_each() -> None:
    def learned(g: ComputeGraph) -> None:
        g.Embedding(g.data["positionIds"], g.weight["wte.weight"], g.data["x"])

    assert build(learned, config={"max_positions": 48}).max_positions == 48
    with pytest.raises(CustomModelError, match=r'call 1, Embedding\(data\["positionIds"\]') as raised:
        build(learned, config={"max_positions": 49})
    assert 'weight["wte.weight"] has 48 rows, and max_positions is 49' in str(raised.value)


def test_dynamic_scaling_ends_where_it_would_begin_to_scale() -> None:
    def turned(g: ComputeGraph) -> None:
        embedded(g)
        g.ExpandHead(g.data["x"], 8)
        turn(g)

    for key in ("rope_scaling", "rope_parameters"):
        config: dict[str, object] = {key: {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16}
        assert build(turned, config={**config, "max_positions": 16}).max_positions == 16
        with pytest.raises(CustomModelError, match="call 3, LlamaRotatePosition2D") as raised:
            build(turned, config={**config, "max_positions": 17})
        assert 'set self.config["max_positions"] to 16' in str(raised.value)
