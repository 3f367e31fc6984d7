"""Checkpoints in the format of the library compressed-tensors (llm-compressor, vLLM): integers only.

For a linear X with R outputs and C inputs, `X.weight_scale` is [R, G], [R, 1] or one number, and the integers are
- int-quantized, naive-quantized: `X.weight` int8 [R, C]; `X.weight_zero_point` int8 as the scale, where it is asymmetric;
- pack-quantized: `X.weight_packed` int32 [R, ceil(C * bits / 32)], `X.weight_shape` [2]; each number has half its range added and the
  lowest bits come first; `X.weight_zero_point` is packed the same way along the rows, int32 [ceil(R * bits / 32), G];
  `X.weight_g_idx` int32 [C], where there is one, has the group of each column (-1: none was reordered).
value = (integer - zero) * scale. The library rounds it to the scale's dtype; here it is float32.

Activations that are quantized as they come are left to the runtime, whose recipes called "dynamic" do so.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.utilities.checkpoints.files import TensorRecord
from flatlm.utilities.checkpoints.packed import (
    Grid,
    QuantizedMatrix,
    bits_of,
    centred,
    check_member,
    finish,
    group_size_of,
    matrix_shape,
    unpack,
)
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.config_reader import ConfigReader

FORMATS = {"int-quantized": False, "naive-quantized": False, "pack-quantized": True}
"""Whether the integers are packed."""
MIXED = "mixed-precision"
CLASS = "Linear"
"""The one target that is a class of modules: every quantized module that no name or pattern fits."""


@dataclass(frozen=True)
class WeightArgs:
    """How the weights of a group of modules are quantized."""

    targets: tuple[str, ...]
    packed: bool
    bits: int
    strategy: str
    group_size: int | None
    symmetric: bool

    def rank(self, module: str) -> int | None:
        """How closely a target fits: 0 the name, 1 a pattern, 2 the class; None where none does."""
        ranks = [0 for target in self.targets if target == module]
        ranks += [1 for target in self.targets if target.startswith("re:") and re.match(target[3:], module)]
        return min([*ranks, *(2 for target in self.targets if target == CLASS)], default=None)


def open_compressed_tensors(store: TensorStore, settings: ConfigReader) -> list[QuantizedMatrix]:
    """The quantized weights; see packed.Opener."""
    groups = list(_read_groups(settings))
    matrices = list[QuantizedMatrix]()
    for name, record in store.tensors.items():
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
        elif name.endswith(".weight") and record.dtype == torch.int8:
            module = name.removesuffix(".weight")
        else:
            continue
        ranked = [(rank, place) for place, group in enumerate(groups) if (rank := group.rank(module)) is not None]
        if not ranked:
            raise ConfigError(f"{settings.source}: config_groups has no target that fits the quantized module {module} of {record.file}")
        matrices.append(_matrix(store, settings, module, record, groups[min(ranked)[1]]))
    return matrices


def _read_groups(settings: ConfigReader) -> Iterator[WeightArgs]:
    default = settings.choice("format", {**{name: name for name in FORMATS}, MIXED: None}, MIXED)
    settings.choice("quantization_status", {"compressed": None, "frozen": None}, "compressed")
    _refuse(settings, "kv_cache_scheme", "is not supported: a quantized cache changes the numbers")
    _refuse(settings, "transform_config", "is not supported: transforms change the weights")
    _refuse(settings, "moe_sparsity_config", "is not supported")
    if sparsity := settings.nested("sparsity_config"):
        sparsity.choice("format", {"dense": None}, "dense")
    groups = settings.nested("config_groups")
    finish(settings, ("quant_method", "ignore", "global_compression_ratio", "version", "run_compressed", "dequantize"))
    for key in groups.values if groups else ():
        group = groups.nested(key) if groups and isinstance(groups.values[key], dict) else None
        if group is None:
            raise ConfigError(f"{settings.source}: config_groups: {key} must be an object with targets and weights")
        yield _read_group(group, default)


def _read_group(group: ConfigReader, default: str | None) -> WeightArgs:
    targets = group.values.get("targets")
    group.skip("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise group.wrong("targets", "must be a list of modules' names, re: patterns, or Linear")
    for target in targets:
        if target.startswith("re:"):
            try:
                re.compile(target[3:])
            except re.error as error:
                raise group.wrong("targets", f"has a pattern that is none: {target!r} ({error})") from error
    form = group.choice("format", {name: name for name in FORMATS}, default or "")
    weights = group.nested("weights")
    if weights is None:
        raise group.wrong("weights", "must say how the weights are quantized")
    if activations := group.nested("input_activations"):
        if activations.values.get("dynamic") is not True:
            raise activations.wrong("dynamic", "is not supported; supported are activations that are quantized as they come (true)")
        activations.choice("type", {"int": None}, "int")
    _refuse(group, "output_activations", "is not supported")
    finish(group)
    weights.choice("type", {"int": None}, "int")
    if weights.values.get("dynamic"):
        raise weights.wrong("dynamic", "is not supported for weights; supported is false")
    _refuse(weights, "block_structure", "is not supported; supported are channels, groups of columns, and the whole tensor")
    group_size = group_size_of(weights)
    strategies = {"channel": "channel", "group": "group", "tensor": "tensor"}
    strategy = weights.choice("strategy", strategies, "group" if group_size else "tensor")
    if (strategy == "group") != (group_size is not None):
        raise weights.wrong("group_size", f"does not go with strategy {strategy!r}")
    packed = FORMATS[form]
    args = WeightArgs(
        tuple(targets),
        packed,
        bits_of(weights, "num_bits", (2, 4, 8) if packed else tuple(range(2, 9))),
        strategy,
        group_size,
        weights.boolean("symmetric", True),
    )
    finish(weights, ("dynamic", "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"))
    return args


def _refuse(settings: ConfigReader, key: str, why: str) -> None:
    settings.skip(key)
    if settings.values.get(key) not in (None, {}, []):
        raise settings.wrong(key, why)


def _matrix(store: TensorStore, settings: ConfigReader, module: str, record: TensorRecord, args: WeightArgs) -> "CompressedMatrix":
    weight = f"{module}.weight"
    if args.packed != record.name.endswith("_packed"):
        kinds = " or ".join(name for name, packed in FORMATS.items() if packed != args.packed)
        raise ConfigError(f"{settings.source}: format does not agree with {record.file}, whose tensor {record.name} is {kinds}")
    rows, columns = matrix_shape(record, weight)
    if args.packed:
        check_member(store, weight, f"{weight}_shape", [(2,)], [torch.int64, torch.int32])
        told = tuple(store.read(f"{weight}_shape").tolist())
        columns = told[1]
        check_member(store, weight, record.name, [(told[0], -(-columns * args.bits // 32))], [torch.int32])
    matrix = CompressedMatrix(weight, store, (rows, columns), bits=args.bits, group_size=args.group_size or columns)
    return matrix.check(record.name, args)


class CompressedMatrix(QuantizedMatrix):
    """X.weight of X.weight or X.weight_packed, X.weight_scale, and what else there is."""

    def check(self, holder: str, args: WeightArgs) -> "CompressedMatrix":
        """Itself, once its tensors are found to fit each other."""
        self.holder, self.args = holder, args
        self.scale, self.zero, self.g_idx = (f"{self.name}_{kind}" for kind in ("scale", "zero_point", "g_idx"))
        rows, columns = self.shape
        if columns % self.group_size:
            raise self.error(holder, f"has {columns} columns, not a multiple of the group_size {self.group_size} in config.json")
        shapes: list[tuple[int, ...]] = [(rows, self.groups)]
        if args.strategy != "group":
            shapes = [(rows, 1), (rows,)] if args.strategy == "channel" else [(1,), (), (1, 1)]
        check_member(self.store, self.name, self.scale, shapes)
        if self.zero in self.store.tensors or not args.symmetric:
            packed = (-(-rows * self.bits // 32), self.groups)
            # A scale for the whole tensor has a zero point that is not packed.
            if args.packed and args.strategy != "tensor":
                check_member(self.store, self.name, self.zero, [packed], [torch.int32])
            else:
                check_member(self.store, self.name, self.zero, shapes, [torch.int8])
        if self.g_idx in self.store.tensors:
            check_member(self.store, self.name, self.g_idx, [(columns,)], [torch.int32, torch.int64])
        return self

    @property
    def members(self) -> tuple[str, ...]:
        others = (self.zero, self.g_idx, f"{self.name}_shape")
        return (self.holder, self.scale, *(name for name in others if name in self.store.tensors))

    def integers(self, start: int, stop: int) -> Tensor:
        stored = self.store.rows(self.holder, start, stop)
        if not self.args.packed:
            return self.in_range(self.holder, stored)
        return centred(unpack(stored, self.bits)[:, : self.shape[1]].contiguous(), self.bits)

    def grid(self, start: int, stop: int) -> Grid:
        scales = self._numbers(self.scale, start, stop).to(torch.float32)
        if self.zero not in self.store.tensors:
            return Grid(scales)
        if self.store.tensors[self.zero].dtype != torch.int32:
            return Grid(scales, self._numbers(self.zero, start, stop))
        number = 32 // self.bits
        first = start // number
        zeros = unpack(self.store.rows(self.zero, first, -(-stop // number)).t(), self.bits)
        return Grid(scales, centred(zeros[:, start - first * number : stop - first * number].t().contiguous(), self.bits))

    def _numbers(self, name: str, start: int, stop: int) -> Tensor:
        """[r, G] of a tensor like the scale."""
        if self.args.strategy == "tensor":
            return self.store.read(name).reshape(1, 1).expand(stop - start, 1)
        return self.store.rows(name, start, stop).reshape(stop - start, self.groups)

    def read_column_groups(self) -> Tensor | None:
        if self.g_idx not in self.store.tensors:
            return None
        groups = self.store.read(self.g_idx).to(torch.int64)
        if bool((groups == -1).all()):
            return None
        if int(groups.min()) < 0 or int(groups.max()) >= self.groups:
            raise self.error(self.g_idx, f"names groups from {int(groups.min())} to {int(groups.max())}, and there are {self.groups}")
        return groups
