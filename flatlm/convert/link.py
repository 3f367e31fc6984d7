"""Link: a stamped model and a layout of weights become the root of a TFLite file.

    [ root: graphs, scales per channel, manifest ] [ weights and block scales, each at a multiple of 64 bytes ]

The root is packed once; the weights' offsets, the scales and the manifest are written into the packed bytes in place.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import flatbuffer
from flatlm.convert.link_ops import Linker
from flatlm.convert.signatures import MANIFEST_KEY
from flatlm.convert.weights import Array, WeightLayout, align, write_all
from flatlm.errors import ExportError

MANIFEST_CAPACITY = 1 << 16
RANGES_TEXT = 160
"""At least the characters of four numbers of a recipe's `activations`, with their keys."""


@dataclass
class Root:
    """A packed flatbuffer whose weights lie behind it. Fill in where (`place`), the scales, and the manifest; then `write`."""

    content: bytearray
    _offsets: list[tuple[int, int]]
    _scales: Mapping[str, Array]
    _manifest: np.ndarray

    def __len__(self) -> int:
        return len(self.content)

    def place(self, weights_at: int, scales: Mapping[str, Array]) -> None:
        """Say that the weights' part begins at byte `weights_at` of the model, and what its scales per channel are."""
        for position, offset in self._offsets:
            self.content[position : position + 8] = (weights_at + offset).to_bytes(8, "little")
        for name, view in self._scales.items():
            view[:] = scales[name]

    def set_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Put the manifest (JSON) into the model's metadata; it may be put again, as long as it fits its reserved space."""
        text = manifest_text(manifest)
        if len(text) > len(self._manifest):
            raise ExportError(f"the manifest takes {len(text)} bytes, more than the {len(self._manifest)} that are kept for it")
        self._manifest[:] = np.frombuffer(text.ljust(len(self._manifest)), np.uint8)

    def write(self, handle: int, base: int = 0) -> None:
        """Write it into a file in which the model begins at byte `base`."""
        write_all(handle, self.content, base)


def manifest_text(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it stands in a file."""
    return json.dumps(manifest, separators=(",", ":")).encode()


def link(model: Any, layout: WeightLayout, *, manifest_capacity: int | None = None) -> Root:
    """Put built-in operators and the layout's weights in the place of a stamped model's named calls, and pack it.

    `manifest_capacity`: bytes that are kept for the manifest; None: MANIFEST_CAPACITY, and what the ranges of static activations take in
    a recipe. Raises ExportError where the model names a weight that the layout does not have.
    """
    if manifest_capacity is None:
        static = (name for name, weight in layout.weights.items() if weight.ranges is not None)
        manifest_capacity = MANIFEST_CAPACITY + sum(len(name) + RANGES_TEXT for name in static)
    linker = Linker(model, layout)
    entry = schema.MetadataT()
    entry.name = MANIFEST_KEY.encode()
    entry.buffer = flatbuffer.add_buffer(model, b" " * manifest_capacity)
    model.metadata = [*(model.metadata or []), entry]
    external = [(model.buffers[index], offset) for index, offset in linker.external]
    flatbuffer.share_equal_buffers(model)
    index = {id(buffer): position for position, buffer in enumerate(model.buffers)}

    content = flatbuffer.pack(model)
    view = schema.Model.GetRootAsModel(content, 0)
    offsets = [(_offset_field(view.Buffers(index[id(buffer)])), offset) for buffer, offset in external]
    manifest = view.Buffers(model.metadata[-1].buffer).DataAsNumpy()
    return Root(content, offsets, _scale_views(view, model), manifest)


def link_and_write(model: Any, layout: WeightLayout, handle: int) -> Root:
    """The whole file, one part after the other: root at byte 0, weights right behind it."""
    root = link(model, layout)
    write_linked(root, layout, handle)
    return root


def write_linked(root: Root, layout: WeightLayout, handle: int) -> None:
    """A root that was linked for the layout at byte 0, and the layout's weights right behind it."""
    weights_at = align(len(root))
    root.place(weights_at, layout.write(handle, weights_at))
    root.write(handle)


def _offset_field(buffer: Any) -> int:
    """The position of Buffer.offset, eight bytes, in the packed root."""
    field = buffer._tab.Offset(6)
    assert field, "Buffer.offset was elided from the packed root"
    return int(buffer._tab.Pos + field)


def _scale_views(view: Any, model: Any) -> dict[str, Array]:
    """Writable views of the packed scales per channel, by weight (every signature's tensor shares one table)."""
    views = {}
    for graph_index, graph in enumerate(model.subgraphs):
        for tensor_index, tensor in enumerate(graph.tensors):
            if isinstance(tensor.quantization, flatbuffer.SharedQuantization):
                name = tensor.name.decode()
                if name not in views:
                    views[name] = view.Subgraphs(graph_index).Tensors(tensor_index).Quantization().ScaleAsNumpy()
    return views
