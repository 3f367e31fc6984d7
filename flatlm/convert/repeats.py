"""Repeats: a traced graph cut into runs of operators, so that layers which are the same but for their index are seen to be.

Torch traces a model's own loop over its layers into one long list of operators, in the order in which they ran. The named calls among
them (`layers/ops.py`) say where each layer is: `model.layers.3.mlp.up_proj.weight` is of layer 3. Between the last call of a layer and
the first of the next the cut is made where the fewest values cross it, which is where the hidden states alone go on. A run is a function
of tensors from outside it, and two runs may share what is compiled where their `fingerprint`s are equal: where the outside tensors
come from is no part of it, since stamping binds them for each run (`traced.py`).

Cutting cannot make a graph wrong: where nothing repeats, every run is of a kind of its own.
"""

import itertools
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, fx

_NUMBER = re.compile(r"\d+")

Constants = Mapping[fx.Node, Hashable]
"""What each of a graph's constants holds, by its node: two of equal contents are one."""


@dataclass(frozen=True)
class Run:
    """Consecutive operators; `layer` is the index that their weights' names have after `prefix`, or None where they name no layer."""

    nodes: Sequence[fx.Node]
    prefix: str = ""
    layer: int | None = None

    def template(self, name: str) -> str:
        """The name with `{}` in the place of the layer's index, as stamping takes it; any other name as it is.

        Several names in one, as of merged projections, each have their own.
        """
        if self.layer is None:
            return name
        return re.sub(rf"(?<![\w.]){re.escape(self.prefix)}{self.layer}(?!\d)", lambda _: f"{self.prefix}{{}}", name)


@dataclass(frozen=True)
class _Stack:
    """Layers, one after the other: for each its index, and the places [first, last] of its named calls in the list of operators."""

    prefix: str | None
    """None: every layer has the same names, as where all share their weights."""
    layers: Sequence[tuple[int, int, int]]
    calls: int

    @property
    def span(self) -> tuple[int, int]:
        return self.layers[0][1], self.layers[-1][2]


def cut(nodes: Sequence[fx.Node], constants: Constants) -> list[Run]:
    """Operators in their order, as runs in that order: what comes before the layers, each layer, what comes after.

    One run, where no layers are found, or no two of them are equal.
    """
    crossing = _crossings(nodes)
    runs, done = [], 0
    for stack in _stacks(nodes):
        layers = _layers(nodes, stack, done, crossing, constants)
        if layers:
            start, stop = layers[0][0], layers[-1][1]
            runs += [Run(nodes[done:start])] if start > done else []
            runs += [_run(nodes, stack, number, layer) for number, layer in enumerate(layers)]
            done = stop
    return [*runs, Run(nodes[done:])] if done < len(nodes) else runs


def fingerprint(run: Run, constants: Constants) -> Hashable:
    """What the run computes, of what shapes and dtypes, whatever tensors it is given: equal for runs that one compiled piece can be."""
    inside = {node: place for place, node in enumerate(run.nodes)}
    given: dict[fx.Node, int] = {}

    def plain(value: object) -> Hashable:
        match value:
            case fx.Node() if value in inside:
                return "inner", inside[value]
            case fx.Node() if value in constants:
                return "constant", constants[value]
            case fx.Node():
                return "outer", given.setdefault(value, len(given)), _kind(value)
            case list() | tuple():
                return tuple(plain(item) for item in value)
            case dict():
                return tuple((name, plain(item)) for name, item in value.items())
            case str():
                return run.template(value)
            case slice():
                return "slice", plain(value.start), plain(value.stop), plain(value.step)
            case _:  # 1, 1.0 and True are different; so are 0.0 and -0.0
                return type(value).__name__, repr(value)

    return tuple((node.target, plain(node.args), plain(node.kwargs), _kind(node)) for node in run.nodes)


def named_call(node: fx.Node) -> bool:
    """Is it one of FlatLM's calls, which carry names of weights?"""
    return node.op == "call_function" and getattr(node.target, "namespace", None) == "flatlm"


def _kind(node: fx.Node) -> Hashable:
    """The shape and dtype of what a node gives."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return tuple((tuple(item.shape), item.dtype) for item in value) if isinstance(value, list | tuple) else repr(value)


def _crossings(nodes: Sequence[fx.Node]) -> list[int]:
    """For a cut before each operator, how many values go over it; as good as infinitely many where one of them is no tensor."""
    place = {node: index for index, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 1)
    for index, node in enumerate(nodes):
        last = max((place[user] for user in node.users if user in place), default=index)
        cost = 1 if isinstance(node.meta.get("val"), Tensor) else _NEVER
        change[min(index + 1, len(nodes))] += cost
        change[min(last + 1, len(nodes))] -= cost
    return list(itertools.accumulate(change))


_NEVER = 1 << 32


def _stacks(nodes: Sequence[fx.Node]) -> list[_Stack]:
    """The stacks of layers in the graph, in order; where two overlap, the one that explains more calls."""
    chosen: list[_Stack] = []
    for stack in sorted(_candidates(nodes), key=lambda stack: -stack.calls):
        (start, stop), others = stack.span, [other.span for other in chosen]
        if all(stop < first or last < start for first, last in others):
            chosen.append(stack)
    return sorted(chosen, key=lambda stack: stack.span)


def _candidates(nodes: Sequence[fx.Node]) -> Iterator[_Stack]:
    calls = [(place, _Call(node.target, tuple(_names(node)))) for place, node in enumerate(nodes) if named_call(node) and any(_names(node))]
    found: dict[str | None, list[tuple[int, int]]] = {}
    for place, call in calls:
        for own, index in {own: index for name in reversed(call.names) for own, index in _numbers(name)}.items():
            found.setdefault(own, []).append((place, index))
    times, seen = Counter(call for _, call in calls), Counter[_Call]()
    most = max(times.values(), default=0)
    for place, call in calls:  # only what comes in every layer tells one from the next
        if times[call] == most:
            found.setdefault(None, []).append((place, seen[call]))
            seen[call] += 1
    for prefix, where in found.items():
        order = [index for _, index in where]
        if order == sorted(order) and order[0] != order[-1]:
            groups = [(index, [place for place, _ in group]) for index, group in itertools.groupby(where, lambda item: item[1])]
            yield _Stack(prefix, [(index, places[0], places[-1]) for index, places in groups], len(where))


class _Call(NamedTuple):
    target: object
    names: tuple[str, ...]


def _names(node: fx.Node) -> Iterator[str]:
    """Of weights; a linear without a bias has an empty one."""
    yield from (value for value in node.args if isinstance(value, str) and value)


def _numbers(name: str) -> Iterator[tuple[str, int]]:
    """Every number of a name, with all that is before it."""
    for match in _NUMBER.finditer(name):
        if match[0] == str(int(match[0])):  # "07" could not be written again from 7
            yield name[: match.start()], int(match[0])


def _layers(nodes: Sequence[fx.Node], stack: _Stack, done: int, crossing: Sequence[int], constants: Constants) -> list[tuple[int, int]]:
    """Where each layer begins and ends, [start, stop); nothing, where no two are equal. `done`: what lies before is another run's.

    Of the ways to cut, the one with the fewest kinds of layers, then the one with the fewest values across its cuts.
    """
    known: dict[tuple[int, int, int], Hashable] = {}

    def kind(number: int, start: int, stop: int) -> Hashable:
        if (number, start, stop) not in known:
            known[number, start, stop] = fingerprint(_run(nodes, stack, number, (start, stop)), constants)
        return known[number, start, stop]

    best: tuple[tuple[int, int], list[tuple[int, int]]] = ((len(stack.layers), 0), [])
    for bounds in dict.fromkeys(_ways(stack, crossing)):
        layers = list(itertools.pairwise(bounds))
        across = sum(crossing[place] for place in bounds)
        if bounds[0] < done or across >= _NEVER:
            continue
        rank = len({kind(number, *layer) for number, layer in enumerate(layers)}), across
        if rank < best[0]:
            best = rank, layers
    return best[1]


def _ways(stack: _Stack, crossing: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Ways to cut: where the first layer begins, the cuts between layers, where the last one ends.

    Between two layers few values cross where one ends, but for values that go past layers. So cuts are tried there, and as far behind
    each layer's last call, or before its first, as they are elsewhere. What is the first layer's before its first call, and the last
    one's after its last, is as much as for others.
    """
    gaps = [(last + 1, first) for (_, _, last), (_, first, _) in itertools.pairwise(stack.layers)]
    least = [[place for place in range(start, stop + 1) if crossing[place] == min(crossing[start : stop + 1])] for start, stop in gaps]
    early, late = [places[0] for places in least], [places[-1] for places in least]
    both = [*zip(gaps, early, strict=True), *zip(gaps, late, strict=True)]
    ways = [early, late]
    ways += [[min(start + tail, stop) for start, stop in gaps] for tail in dict.fromkeys(place - start for (start, _), place in both)]
    ways += [[max(stop - head, start) for start, stop in gaps] for head in dict.fromkeys(stop - place for (_, stop), place in both)]
    begin, end = stack.span
    for cuts in ways:
        heads = dict.fromkeys(stop - place for (_, stop), place in zip(gaps, cuts, strict=True))
        tails = dict.fromkeys(place - start for (start, _), place in zip(gaps, cuts, strict=True))
        for head, tail in itertools.product(heads, tails):
            if head <= begin and end + 1 + tail < len(crossing):
                yield begin - head, *cuts, end + 1 + tail


def _run(nodes: Sequence[fx.Node], stack: _Stack, number: int, layer: tuple[int, int]) -> Run:
    inside = nodes[slice(*layer)]
    return Run(inside) if stack.prefix is None else Run(inside, stack.prefix, stack.layers[number][0])
