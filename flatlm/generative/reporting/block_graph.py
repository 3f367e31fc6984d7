"""The blocks of an exported file, told from the file alone: the names of its weights, in the order that operators read them."""

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import TensorSpec, manifest_of
from flatlm.generative.inspect import describe_scheme
from flatlm.generative.model_file import read_model_file

LONGEST_PATTERN = 12
"""Kinds of blocks that are looked for as one pattern that repeats, such as five local ones and a global one."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_OUTER = re.compile(r"([a-z_]+)\.(weight|bias)")
_EXPERT = re.compile(r"experts\.\d+\.")


@dataclass(frozen=True)
class Part:
    """A projection, norm or table. `count`: equal ones side by side, as experts are; bytes of all of them, with biases and scales."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    bytes: int
    count: int = 1


@dataclass(frozen=True)
class BlockKind:
    """What equal blocks have in common. `caches`: of keys, of values, and their scales where they are int8."""

    parts: tuple[Part, ...]
    caches: tuple[TensorSpec, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class Run:
    """`count` equal blocks, one after the other."""

    kind: BlockKind
    count: int


@dataclass(frozen=True)
class Stack:
    """Runs that occur `times` in that order, from the block `first` on."""

    runs: tuple[Run, ...]
    times: int
    first: int

    @property
    def blocks(self) -> int:
        return self.times * sum(run.count for run in self.runs)


@dataclass(frozen=True)
class BlockGraph:
    """`before` and `after`: what lies outside the blocks. `tied`: the head reads the embedding's weights."""

    file: Path
    bytes: int
    context: int
    manifest: Mapping[str, Any]
    before: tuple[Part, ...]
    stacks: tuple[Stack, ...]
    after: tuple[Part, ...]
    tied: bool


def read_block_graph(path: Path) -> BlockGraph:
    """Raises RuntimeFileError for a file that is none of FlatLM's, or is damaged."""
    file = read_model_file(path)
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = memoryview(mapped)[file.offset : file.offset + file.size]
        try:
            model = schema.Model.GetRootAsModel(content, 0)
            parts, manifest = _parts(model), manifest_of(model)
        finally:
            del model
            content.release()
    blocks: dict[int, list[Part]] = {}
    before, after = list[Part](), list[Part]()
    for name, part in parts.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), []).append(replace(part, name=match[2]))
        elif match := _OUTER.fullmatch(name):
            (after if blocks else before).append(replace(part, name=match[1]))
    if sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise RuntimeFileError(
            f"{path}: its weights are not named blocks.<layer>..., as FlatLM names them, so its blocks cannot be told; try --explorer"
        )
    kinds = [BlockKind(_joined(blocks[layer]), _caches(file.decode.caches, layer)) for layer in range(len(blocks))]
    tied = "lm_head.weight" not in parts
    return BlockGraph(path, path.stat().st_size, file.cache_length, manifest, _joined(before), stacks(kinds), _joined(after), tied)


def stacks(kinds: Sequence[BlockKind]) -> tuple[Stack, ...]:
    """Equal neighbours as one run; the shortest pattern that repeats through all blocks as one stack, its rest as another."""
    for length in range(1, min(LONGEST_PATTERN, len(kinds) // 2) + 1):
        if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
            times, rest = divmod(len(kinds), length)
            whole = Stack(_runs(kinds[:length]), times, 0)
            return (whole, *_one_by_one(kinds[len(kinds) - rest :], len(kinds) - rest))
    return tuple(_one_by_one(kinds, 0))


def _one_by_one(kinds: Sequence[BlockKind], first: int) -> Iterator[Stack]:
    """A stack of each run."""
    for run in _runs(kinds):
        yield Stack((replace(run, count=1),), run.count, first)
        first += run.count


def _runs(kinds: Sequence[BlockKind]) -> tuple[Run, ...]:
    return tuple(Run(kind, len(list(group))) for kind, group in groupby(kinds))


def _parts(model: Any) -> dict[str, Part]:
    """Every stored tensor by its name, once for all signatures, in the order of their use; scales count as their weight's bytes."""
    parts: dict[str, Part] = {}
    seen = set()
    for graph in _graphs(model):
        for tensor in _in_order(graph):
            size = model.Buffers(tensor.Buffer()).Size()
            if not size or tensor.Buffer() in seen:
                continue
            seen.add(tensor.Buffer())
            name, _, _ = tensor.Name().decode(errors="replace").partition("/")
            if name not in parts:
                shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
                parts[name] = Part(name, shape, describe_scheme(tensor), 0)
            parts[name] = replace(parts[name], bytes=parts[name].bytes + size)
    return parts


def _in_order(graph: Any) -> Iterator[Any]:
    """A graph's tensors, those that operators read in the order in which they first do."""
    operators = (graph.Operators(k) for k in range(graph.OperatorsLength()))
    read = [int(operator.Inputs(i)) for operator in operators for i in range(operator.InputsLength())]
    for index in dict.fromkeys((*read, *range(graph.TensorsLength()))):
        if index >= 0:  # -1: an optional input left out
            yield graph.Tensors(index)


def _graphs(model: Any) -> Iterator[Any]:
    """That of `decode` first: it alone has its experts in graphs of their own, and their router before them."""
    entries = (model.SignatureDefs(i) for i in range(model.SignatureDefsLength()))
    first = next(int(entry.SubgraphIndex()) for entry in entries if entry.SignatureKey() == b"decode")
    for index in (first, *(i for i in range(model.SubgraphsLength()) if i != first)):
        yield model.Subgraphs(index)


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Biases with their weights, equal experts as one, behind their router."""
    whole: dict[str, Part] = {}
    for part in parts:
        known = whole.get(part.name)
        whole[part.name] = part if known is None else replace(known, bytes=known.bytes + part.bytes)
    experts: dict[tuple[object, ...], Part] = {}
    for part in [part for part in whole.values() if _EXPERT.search(part.name)]:
        del whole[part.name]
        part = replace(part, name=_EXPERT.sub("experts.", part.name))
        known = experts.get(key := (part.name, part.shape, part.scheme))
        experts[key] = part if known is None else replace(known, bytes=known.bytes + part.bytes, count=known.count + 1)
    names, ordered = list(whole), list(whole.values())
    behind = names.index("feed_forward.router") + 1 if "feed_forward.router" in names else len(names)
    return (*ordered[:behind], *experts.values(), *ordered[behind:])


def _caches(caches: Mapping[str, TensorSpec], layer: int) -> tuple[TensorSpec, ...]:
    names = (f"kv_cache_{part}_{layer}{end}" for end in ("", "_scale") for part in "kv")
    return tuple(caches[name] for name in names if name in caches)
