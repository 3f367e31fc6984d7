"""Checkpoints that torchao quantized, as transformers saves them in safetensors files: each tensor's parts beside its description.

The files' metadata has `tensor_names`, and for each of those a JSON object with `_type`, `_data` (its attributes) and `_tensor_data_names`;
the parts of `X.weight` are called `X._weight_qdata`, `X._weight_scale`, ... All of these are integers with a grid:
- Int8Tensor, IntxUnpackedToInt8Tensor: qdata int8 [R, C], scale and zero_point [R / r, C / c] where block_size is [r, c];
  value = (integer - zero_point) * scale;
- Int4Tensor: qdata [R, C / 2], the even column in the low four bits, signed; scale and zero_point [G, R];
  value = integer * scale + zero_point.
torchao rounds the value to the dtype that the model had; here it is float32. Activations that are quantized as they come are left to
the runtime, whose recipes called "dynamic" do so. (torchao 0.18, torchao/prototype/safetensors)
"""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.packed import AGAIN, Grid, QuantizedMatrix, WholeTensors, check_member, finish, matrix_shape
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.config_reader import ConfigReader

KINDS = ("Int4Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
ATTRIBUTES = {
    "block_size",
    "dtype",
    "shape",
    "act_quant_kwargs",
    "reduce_range",
    "target_dtype",
    "activation_quantization",
    "activation_dtype",
}
"""Those that are read or known not to change a weight: how it was made, and how torchao treats activations."""
PARTS = {"qdata", "scale", "zero_point"}


def open_torchao(store: TensorStore, settings: ConfigReader) -> list[QuantizedMatrix]:
    """The quantized weights; see packed.Opener. The settings say how they were made; the files say what they are."""
    finish(
        settings,
        (
            "quant_method",
            "quant_type",
            "quant_type_kwargs",
            "modules_to_not_convert",
            "include_input_output_embeddings",
            "untie_embedding_weights",
        ),
    )
    whole, matrices = WholeTensors(store), list[QuantizedMatrix]()
    for file in sorted({record.file for record in store.tensors.values()}):
        metadata = _metadata(file)
        for name in _json(file, metadata, "tensor_names", list, ()):
            described = _json(file, metadata, name, dict, {})
            prefix = "{}._{}_".format(*name.rpartition(".")[::2])
            if described.get("_type") == "Tensor" or f"{prefix}qdata" not in store.tensors:
                continue  # plain, or described in every shard and kept in another
            if not any(matrix.name == name for matrix in matrices):
                matrices.append(_matrix(store, file, name, prefix, described, whole))
    if not matrices:
        raise CheckpointError(
            f"{store.directory}: its files do not describe any torchao tensor, though quantization_config in config.json says torchao; "
            "save it again with transformers 5 and torchao 0.18 or later as safetensors, or take the unquantized checkpoint"
        )
    return matrices


def _matrix(store: TensorStore, file: Path, name: str, prefix: str, described: dict[str, Any], whole: WholeTensors) -> QuantizedMatrix:
    kind, data, parts = described.get("_type"), described.get("_data"), described.get("_tensor_data_names")
    where = f"{file}: tensor {name}"
    if kind not in KINDS:
        raise CheckpointError(f"{where} is of torchao's {kind}, which is not supported; supported are {', '.join(KINDS)}")
    if not isinstance(data, dict) or not isinstance(parts, list) or not isinstance(block := data.get("block_size"), list):
        raise CheckpointError(f"{where} has no description that can be read; {AGAIN}")
    if strange := sorted({str(part) for part in parts} - PARTS) + sorted(data.keys() - ATTRIBUTES):
        raise CheckpointError(f"{where} has {strange[0]}, which is not supported; take a checkpoint quantized without it")
    stored = matrix_shape(store.tensors[f"{prefix}qdata"], name)
    shape = (stored[0], stored[1] * 2) if kind == "Int4Tensor" else stored
    if (
        len(block) != 2
        or not all(isinstance(size, int) and size > 0 for size in block)
        or block[0] not in (1, shape[0])
        or shape[1] % block[1]
    ):
        raise CheckpointError(
            f"{where} of shape {list(shape)} has block_size {block}, which is not supported; supported are [1, n] and [{shape[0]}, n], "
            f"where n divides {shape[1]}"
        )
    bits = 4 if kind == "Int4Tensor" else _bits(data.get("target_dtype"))
    matrix = TorchaoMatrix(name, store, shape, bits=bits, group_size=block[1])
    return matrix.check(prefix, whole, across=kind == "Int4Tensor", block_rows=block[0], zeros="zero_point" in parts)


class TorchaoMatrix(QuantizedMatrix):
    """X.weight of X._weight_qdata, X._weight_scale and X._weight_zero_point."""

    def check(self, prefix: str, whole: WholeTensors, *, across: bool, block_rows: int, zeros: bool) -> "TorchaoMatrix":
        """Itself, once its tensors are found to fit each other. `across`: an Int4Tensor, with rows of the grid for each group."""
        self.whole, self.across, self.one_row = whole, across, block_rows != 1
        self.qdata, self.scale, self.zero = (prefix + kind for kind in ("qdata", "scale", "zero_point"))
        self.zeros = zeros
        rows, columns = self.shape
        check_member(
            self.store, self.name, self.qdata, [(rows, columns // 2 if across else columns)], [torch.int8, *([torch.uint8] * across)]
        )
        shape = (self.groups, rows) if across else (rows // block_rows, self.groups)
        floats = [torch.float32, torch.bfloat16, torch.float16]
        check_member(self.store, self.name, self.scale, [shape], floats)
        if zeros:
            check_member(self.store, self.name, self.zero, [shape], floats if across else [torch.int8, *floats])
        return self

    @property
    def members(self) -> tuple[str, ...]:
        return (self.qdata, self.scale, *([self.zero] if self.zeros else []))

    def integers(self, start: int, stop: int) -> Tensor:
        stored = self.store.rows(self.qdata, start, stop)
        if not self.across:
            return self.in_range(self.qdata, stored)
        stored = stored.view(torch.int8)  # shifting left and back brings the sign along
        return torch.stack((stored << 4 >> 4, stored >> 4), -1).view(stop - start, self.shape[1])

    def grid(self, start: int, stop: int) -> Grid:
        scales = self._numbers(self.scale, start, stop).to(torch.float32)
        if not self.zeros:
            return Grid(scales)
        zeros = self._numbers(self.zero, start, stop)
        return Grid(scales, offsets=zeros.to(torch.float32)) if self.across else Grid(scales, zeros)

    def _numbers(self, name: str, start: int, stop: int) -> Tensor:
        """[r, G] of a tensor like the scale."""
        if self.across:
            return self.whole.get(name)[:, start:stop].t()
        return self.store.read(name).expand(stop - start, -1) if self.one_row else self.store.rows(name, start, stop)


def _bits(dtype: object) -> int:
    """Of a described dtype such as int4; 8 where there is none."""
    name = dtype.get("_data") if isinstance(dtype, dict) else None
    digits = str(name).removeprefix("int")
    return int(digits) if digits in tuple("12345678") else 8


def _metadata(file: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, whose header was checked when it was opened; nothing for another kind of file."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{file}: its header cannot be read ({error}); {AGAIN}") from error
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _json(file: Path, metadata: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """A value of the metadata, which is JSON in text."""
    if key not in metadata:
        return default
    try:
        value = json.loads(metadata[key])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its metadata {key!r} is not JSON ({error}); {AGAIN}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{file}: its metadata {key!r} is no {kind.__name__}; {AGAIN}")
    return value
