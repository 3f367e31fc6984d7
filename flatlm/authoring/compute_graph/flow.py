"""From recorded calls to checked nodes: every name is found, every shape fits, every value is written once."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatlm.authoring.compute_graph.calls import INPUTS, PAST, Call, DataName, WeightName
from flatlm.authoring.compute_graph.nodes import (
    Activated,
    Attended,
    Heads,
    Ids,
    Lookup,
    Multiplied,
    Node,
    Normed,
    Product,
    Sum,
    Turned,
    Turning,
)
from flatlm.errors import ConfigError, CustomModelError
from flatlm.layers.config import AttentionConfig
from flatlm.utilities.configs.config_parts import positions_unscaled, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader

LOGITS = "logits"
MAX_POSITIONS = "max_positions"
"""The key under which build() leaves the longest context, in tokens."""
IDS = {"inputIds": Ids.TOKENS, "positionIds": Ids.POSITIONS}
SPACES = {"AddTo": "added", "MulTo": "multiplied"}


@dataclass
class Flow:
    """Checked nodes, in order. `shapes`: of every value, without [1, T]; `logits`: the value that is the result."""

    nodes: list[Node] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    logits: int = -1


@dataclass(frozen=True)
class _Written:
    """What a data name stands for: a value, of all tokens or of each text's last one."""

    value: int
    last: bool = False


def check_flow(calls: Sequence[Call], tensors: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], source: str) -> Flow:
    """The flow of the calls over a checkpoint with tensors of these shapes.

    `config`: as build() left it, with `max_positions`. `source`: what it is called in errors.

    Raises CustomModelError for the first call that is wrong, naming the call, the data or weight, and the shapes.
    """
    return _Checker(tensors, config, source).run(calls)


class _Checker:
    def __init__(self, tensors: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], source: str) -> None:
        self.tensors, self.config, self.source = tensors, config, source
        self.flow = Flow()
        self.data: dict[str, _Written] = {}
        self.attended: dict[int, Call] = {}
        self.call: Call

    def run(self, calls: Sequence[Call]) -> Flow:
        for self.call in calls:
            getattr(self, self.call.operator)(*self.call.arguments)
        if LOGITS not in self.data:
            hint = _nearest(LOGITS, self.data, "data")
            raise CustomModelError(f'{self.source}: build() wrote nothing to data["{LOGITS}"], which is the result{hint}')
        self.flow.logits = self.data[LOGITS].value
        shape = self.flow.shapes[self.flow.logits]
        if len(shape) != 1:
            raise CustomModelError(f'{self.source}: data["{LOGITS}"] is {_whole(shape)}; the result is [1, T, V]')
        if not self.attended:
            raise CustomModelError(f"{self.source}: build() calls FusedAttention nowhere: what it describes has no KV cache")
        missing = [index for index in range(max(self.attended) + 1) if index not in self.attended]
        if missing:
            last = self.attended[max(self.attended)]
            raise last.wrong(f'data["{PAST[0]}{missing[0]}"] is used by no call: caches are numbered 0, 1, ... without gaps')
        return self.flow

    # The operators, by their names.

    def Embedding(self, ids: DataName, weight: WeightName, output: DataName) -> None:  # noqa: N802
        if ids.name not in IDS:
            raise self.call.wrong(f'{ids} is not a list of ids: give data["inputIds"] or data["positionIds"]')
        rows, width = self._tensor(weight, 2)
        longest = self.config[MAX_POSITIONS]
        if IDS[ids.name] is Ids.POSITIONS and rows < longest:
            raise self.call.wrong(f'{weight} has {rows} rows, and {MAX_POSITIONS} is {longest}: self.config["{MAX_POSITIONS}"] = {rows}')
        self._write(output, Lookup((), self._new((width,)), (weight.name,), (), "", IDS[ids.name], rows, width))

    def Linear(self, x: DataName, weight: WeightName, bias: WeightName | None, output: DataName) -> None:  # noqa: N802
        source, shape = self._read(x)
        name = self._tied(weight, output)
        rows, columns = self._tensor(name, 2)
        if shape[-1] != columns:
            raise self.call.wrong(f"{x} is {_whole(shape)}, and {name} {[rows, columns]} takes [..., {columns}]")
        added = () if bias is None or bias.name not in self.tensors else (bias.name,)
        if added and self.tensors[added[0]] != (rows,):
            raise self.call.wrong(f"{bias} is {list(self.tensors[added[0]])}, and {name} {[rows, columns]} gives [..., {rows}]")
        node = Product((source.value,), self._new((*shape[:-1], rows)), (name.name,), added, "", columns, rows)
        self._write(output, node, last=source.last)

    def RMSNorm(self, x: DataName, weight: WeightName, eps: float, output: DataName) -> None:  # noqa: N802
        source, shape = self._read(x)
        (width,) = self._tensor(weight, 1)
        if shape[-1] != width:
            raise self.call.wrong(f"{x} is {_whole(shape)}, and {weight} [{width}] normalises [..., {width}]")
        self._write(output, Normed((source.value,), self._new(shape), (weight.name,), (), "", width, eps), last=source.last)

    def ExpandHead(self, x: DataName, width: int) -> None:  # noqa: N802
        source, shape = self._read(x)
        if width < 1 or shape[-1] % width:
            raise self.call.wrong(f"{x} is {_whole(shape)}, whose last dimension is not a multiple of headDim = {width}")
        count = shape[-1] // width
        self._write(x, Heads((source.value,), self._new((*shape[:-1], count, width)), count, width), last=source.last)

    def LlamaRotatePosition2D(self, x: DataName, positions: DataName, sin: DataName, cos: DataName, pairs: int) -> None:  # noqa: N802
        source, shape = self._heads(x)
        for given, wanted in ((positions, "positionIds"), (sin, "sin"), (cos, "cos")):
            self._must_be(given, wanted)
        width = shape[1]
        if width % 2 or pairs < 1:
            raise self.call.wrong(
                f"{x} is {_whole(shape)}: heads of an even width turn, by a rotaryDim of 1 or more, of which H // 2 turn all"
            )
        turning = Turning(self._rope(width), min(pairs, width // 2))
        self._write(x, Turned((source.value,), self._new(shape), turning))

    def FusedAttention(  # noqa: N802
        self,
        q: DataName,
        k: DataName,
        v: DataName,
        curk: DataName,
        curv: DataName,
        original: DataName,
        mask: DataName,
        output: DataName,
        lengths: DataName,
        scale: float,
        mask_type: int,
        unit: int,
    ) -> None:
        queries, (heads, width) = self._heads(q)
        keys, key_shape = self._heads(curk)
        values, value_shape = self._heads(curv)
        if key_shape != value_shape or key_shape[1] != width or heads % key_shape[0]:
            raise self.call.wrong(
                f"{q} is {_whole((heads, width))}, {curk} {_whole(key_shape)}, {curv} {_whole(value_shape)}: heads must have one width, "
                "keys and values one number, which divides that of the queries"
            )
        self._must_be(mask, "attentionMask")
        self._must_be(lengths, "seqLens")
        if self._read(original)[0].last:
            raise self.call.wrong(f"{original} holds the last token only, and the output has all of them")
        if mask_type != 0:
            raise self.call.wrong(f"maskType = {mask_type} is not supported: 0 is, where a token sees those before it")
        layer = self._cache(k, v)
        config = AttentionConfig(heads, key_shape[0], width, rope=None, scale=scale)
        node = Attended((queries.value, keys.value, values.value), self._new((heads * width,)), str(layer), config)
        self._write(output, node)

    def AddTo(self, a: DataName, b: DataName, alpha: float) -> None:  # noqa: N802
        first, second, shape = self._alike(a, b)
        self._write(a, Sum((first.value, second.value), self._new(shape), alpha), last=first.last)

    def MulTo(self, a: DataName, b: DataName) -> None:  # noqa: N802
        first, second, shape = self._alike(a, b)
        self._write(a, Multiplied((first.value, second.value), self._new(shape)), last=first.last)

    def Silu(self, x: DataName, output: DataName) -> None:  # noqa: N802
        source, shape = self._read(x)
        self._write(output, Activated((source.value,), self._new(shape)), last=source.last)

    def DataTypeAs(self, x: DataName, like: DataName) -> None:  # noqa: N802
        for name in (x, like):
            if not name.is_input:
                self._read(name)

    def SplitLastTokenStates(self, x: DataName, lengths: DataName, output: DataName) -> None:  # noqa: N802
        source, _ = self._read(x)
        self._must_be(lengths, "seqLens")
        self._may_write(output)
        self.data[output.name] = _Written(source.value, last=True)  # all tokens' states, of which each could be a text's last

    # What they share.

    def _new(self, shape: tuple[int, ...]) -> int:
        self.flow.shapes.append(shape)
        return len(self.flow.shapes) - 1

    def _read(self, name: DataName) -> tuple[_Written, tuple[int, ...]]:
        if name.is_input:
            raise self.call.wrong(f"{name} is an input, and cannot be computed with")
        if name.name not in self.data:
            raise self.call.wrong(f"{name} is read before anything is written to it{_nearest(name.name, [*self.data, *INPUTS], 'data')}")
        written = self.data[name.name]
        return written, self.flow.shapes[written.value]

    def _heads(self, name: DataName) -> tuple[_Written, tuple[int, ...]]:
        written, shape = self._read(name)
        if len(shape) != 2:
            raise self.call.wrong(f"{name} is {_whole(shape)}; it must be [1, T, heads, H]: call ExpandHead before")
        if written.last:
            raise self.call.wrong(f"{name} holds the last token only: positions and caches need all of them")
        return written, shape

    def _alike(self, a: DataName, b: DataName) -> tuple[_Written, _Written, tuple[int, ...]]:
        (first, shape), (second, other) = self._read(a), self._read(b)
        if shape != other or first.last != second.last:
            shapes = f"{a} is {_whole(shape, first)}, {b} {_whole(other, second)}"
            raise self.call.wrong(f"{shapes}: only equal shapes can be {SPACES[self.call.operator]}")
        return first, second, shape

    def _may_write(self, name: DataName) -> None:
        if name.is_input:
            raise self.call.wrong(f"{name} is an input: write to another name")

    def _write(self, name: DataName, node: Node, *, last: bool = False) -> None:
        self._may_write(name)
        self.flow.nodes.append(node)
        self.data[name.name] = _Written(node.output, last)

    def _tensor(self, weight: WeightName, dimensions: int) -> tuple[int, ...]:
        if weight.name not in self.tensors:
            raise self.call.wrong(f"{weight} is not in the checkpoint{_nearest(weight.name, self.tensors, 'weight')}")
        shape = self.tensors[weight.name]
        if len(shape) != dimensions:
            raise self.call.wrong(f"{weight} is {list(shape)}; a weight of {self.call.operator} has {dimensions} dimensions")
        return shape

    def _tied(self, weight: WeightName, output: DataName) -> WeightName:
        """The weight, or the embedding where the head of a tied checkpoint is not in it."""
        if weight.name in self.tensors or output.name != LOGITS or self.config.get("tie_word_embeddings") is False:
            return weight
        tables = [node.weight[0] for node in self.flow.nodes if isinstance(node, Lookup) and node.ids is Ids.TOKENS]
        near = difflib.get_close_matches(weight.name, self.tensors, 1, 0.9)  # a misspelt name is not a tied head
        return WeightName(tables[0]) if len(tables) == 1 and not near else weight

    def _must_be(self, given: DataName, wanted: str) -> None:
        if given.name != wanted:
            raise self.call.wrong(f'{given} is given where data["{wanted}"] must be')

    def _cache(self, k: DataName, v: DataName) -> int:
        """The layer of a pair of caches."""
        layer = k.name.removeprefix(PAST[0])
        if not k.name.startswith(PAST[0]) or not layer.isdecimal() or str(int(layer)) != layer:
            raise self.call.wrong(f'{k} is not a cache of keys: give data["{PAST[0]}"][i], for i = 0, 1, ...')
        self._must_be(v, f"{PAST[1]}{layer}")
        if int(layer) in self.attended:
            raise self.call.wrong(f"{k} belongs to call {self.attended[int(layer)].number}: each layer has caches of its own")
        self.attended[int(layer)] = self.call
        return int(layer)

    def _rope(self, width: int) -> Any:
        """What sin and cos are made of, from rope_theta and rope_scaling, or from rope_parameters."""
        reader = ConfigReader(self.config, f"{self.source}: config")
        try:
            rope = read_rope(reader, width)
            unscaled = positions_unscaled(reader)
        except ConfigError as error:
            raise self.call.wrong(str(error)) from error
        if unscaled is not None and self.config[MAX_POSITIONS] > unscaled:
            raise self.call.wrong(
                f"{MAX_POSITIONS} is {self.config[MAX_POSITIONS]}, and dynamic scaling begins beyond max_position_embeddings, where a "
                f'file cannot follow it: set self.config["{MAX_POSITIONS}"] to {unscaled}'
            )
        if rope.rotary_dim is not None:
            raise self.call.wrong(
                f"partial_rotary_factor makes {rope.rotary_dim} of {width} entries turn, the first ones: LlamaRotatePosition2D turns halves"
            )
        return rope


def _whole(shape: tuple[int, ...], written: _Written | None = None) -> str:
    tokens = "1" if written is not None and written.last else "T"
    return f"[{', '.join(['1', tokens, *map(str, shape)])}]"


def _nearest(name: str, known: Iterable[str], kind: str) -> str:
    """What is near the name, as a hint that follows a comma-less sentence; '' where nothing is."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f'; did you mean {kind}["{close[0]}"]?' if close else ""
