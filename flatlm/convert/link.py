"""Link, second half: lay the file out, then stream every weight through its scheme to its place.

    [ flatbuffer root: graphs, scales per channel, manifest ] [ weights and block scales, each at a multiple of 64 bytes ]

Sizes follow from shapes and recipe before a byte is read. The root is packed once; the offsets, the scales and the manifest are
written into the packed bytes in place. No weight is ever whole in memory.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import flatbuffer
from flatlm.convert.link_ops import LinkedWeight, Linker, WeightSource
from flatlm.errors import CheckpointError, ExportError, RecipeError
from flatlm.quantize.encode import Encoded, NonFiniteWeightError, encode_stream
from flatlm.quantize.recipes import Recipe

ALIGNMENT = 64
MANIFEST_KEY = "flatlm.manifest"
MANIFEST_CAPACITY = 1 << 16

Progress = Callable[[str, int, int], None]
"""Called as (what, bytes or steps done, in all)."""


@dataclass
class LinkedModel:
    """A model whose layout is fixed: `size` bytes. `write` fills it in."""

    root: bytearray
    weights: list[LinkedWeight]
    size: int
    _places: dict[str, tuple[int, int]]
    _scales: dict[str, np.ndarray]
    _manifest: np.ndarray

    def write(self, handle: int, *, base: int = 0, threads: int | None = None, progress: Progress | None = None) -> None:
        """Encode every weight to its place in the file `handle`, `base` bytes in; then the root.

        Raises CheckpointError for a weight that is not finite, OSError where the file cannot take it.
        """
        os.truncate(handle, base + self.size)
        done, total = 0, sum(weight.source_size() for weight in self.weights)
        for weight in self.weights:
            self._write_weight(handle, base, weight, threads)
            done += weight.source_size()
            if progress is not None:
                progress("weights", done, total)
        _write_all(handle, self.root, base)

    def write_manifest(self, handle: int, manifest: Mapping[str, Any], *, base: int = 0) -> None:
        """Put the manifest (JSON) into the model's metadata; it may be written again, as long as it fits its reserved space."""
        text = json.dumps(manifest, separators=(",", ":")).encode()
        if len(text) > len(self._manifest):
            raise ExportError(f"the manifest takes {len(text)} bytes, more than the {len(self._manifest)} that are kept for it")
        self._manifest[:] = np.frombuffer(text.ljust(len(self._manifest)), np.uint8)
        _write_all(handle, self.root, base)

    def _write_weight(self, handle: int, base: int, weight: LinkedWeight, threads: int | None) -> None:
        shape = weight.source.shape
        matrix = shape if len(shape) == 2 else (1, shape[0])
        data_at, scales_at = self._places[weight.name]
        row_bytes = weight.scheme.nbytes(shape) // matrix[0]

        def sink(start: int, stop: int, encoded: Encoded) -> None:
            _write_all(handle, encoded.data, base + data_at + start * row_bytes)
            if encoded.scales is None:
                return
            if weight.scales is None:
                self._scales[weight.name][start:stop] = encoded.scales
            else:
                _write_all(handle, encoded.scales, base + scales_at + start * encoded.scales[0].nbytes)

        def read(start: int, stop: int) -> Any:
            if len(shape) == 2:
                return weight.source.rows(start, stop)
            return weight.source.rows(0, shape[0])[None, :]

        try:
            encode_stream(read, matrix, weight.scheme, sink, threads=threads)
        except NonFiniteWeightError as error:
            where = weight.source.origin(error.row)
            raise CheckpointError(
                f"{where} holds NaN or infinity (weight {weight.name}, row {error.row}): repair the checkpoint"
            ) from error
        except RecipeError as error:
            raise RecipeError(f"{weight.source.origin(0)} (weight {weight.name}): {error}") from error


def link(model: Any, sources: Mapping[str, WeightSource], recipe: Recipe) -> LinkedModel:
    """Fix a stamped model's operators, buffers and layout. `sources` holds every weight it names; `recipe` says how each is kept.

    Raises RecipeError where a scheme does not fit a weight's shape.
    """
    linker = Linker(model, sources, recipe)
    entry = schema.MetadataT()
    entry.name = MANIFEST_KEY.encode()
    entry.buffer = flatbuffer.add_buffer(model, b" " * MANIFEST_CAPACITY)
    model.metadata = [*(model.metadata or []), entry]
    external = _share_buffers(model, linker)
    root = flatbuffer.pack(model)

    places, size = {}, len(root)
    view = schema.Model.GetRootAsModel(root, 0)
    for name, (data, scales) in external.items():
        offsets = []
        for index in (data, scales):
            if index is None:
                offsets.append(0)
                continue
            size += -size % ALIGNMENT
            offsets.append(size)
            _set_buffer_offset(view.Buffers(index), size)
            size += model.buffers[index].size
        places[name] = (offsets[0], offsets[1])
    manifest = view.Buffers(model.metadata[-1].buffer).DataAsNumpy()
    return LinkedModel(root, list(linker.weights.values()), size, places, _scale_views(view, model, linker), manifest)


def _share_buffers(model: Any, linker: Linker) -> dict[str, tuple[int, int | None]]:
    """Drop and share small buffers; the indices of the external ones afterwards, by weight."""
    objects = {name: (model.buffers[w.data], None if w.scales is None else model.buffers[w.scales]) for name, w in linker.weights.items()}
    flatbuffer.share_equal_buffers(model)
    index = {id(buffer): position for position, buffer in enumerate(model.buffers)}
    return {name: (index[id(data)], None if scales is None else index[id(scales)]) for name, (data, scales) in objects.items()}


def _set_buffer_offset(buffer: Any, offset: int) -> None:
    field = buffer._tab.Offset(6)
    assert field, "Buffer.offset was elided from the packed root"
    position = buffer._tab.Pos + field
    buffer._tab.Bytes[position : position + 8] = offset.to_bytes(8, "little")


def _scale_views(view: Any, model: Any, linker: Linker) -> dict[str, np.ndarray]:
    """Writable views of the packed per-channel scales, by weight (every signature's tensor shares one table)."""
    views = {}
    for graph_index, graph in enumerate(model.subgraphs):
        for tensor_index, tensor in enumerate(graph.tensors):
            if isinstance(tensor.quantization, flatbuffer.SharedQuantization):
                views[tensor.name.decode()] = view.Subgraphs(graph_index).Tensors(tensor_index).Quantization().ScaleAsNumpy()
    return {name: views[name] for name, weight in linker.weights.items() if weight.quantization is not None}


def _write_all(handle: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
