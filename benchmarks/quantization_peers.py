"""What FlatLM's recipes are measured against: ai-edge-quantizer on a float32 file, and llama.cpp's types as ggml quantizes them.

ai-edge-quantizer (a dependency of litert-torch) takes the file of the generic path, since it refuses names that several tensors share.
Its files run as FlatLM's do. llama.cpp's types are judged by their weights alone: quantized by ggml, widened again, and run in float32
by the eager model, so that nothing is lost in the activations. Which tensor gets which type follows llama.cpp's src/llama-quant.cpp.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.generic import Signatures
from flatlm.convert.quiet import quiet
from flatlm.convert.signatures import signature_specs
from flatlm.generative.model_file import read_model_file
from flatlm.generative.reference import EagerReference
from flatlm.layers.model import Decoder
from flatlm.utilities.documents import Piece
from flatlm.utilities.example import build_model

Array = np.ndarray[Any, np.dtype[np.float32]]


class NotPossible(Exception):  # noqa: N818 - a line of the table, not a fault
    """A peer that cannot do this model, and why."""


@dataclass(frozen=True)
class EdgeRun:
    """One of ai-edge-quantizer's algorithms (a name in its AlgorithmName) with bits and granularity; activations quantized as they come."""

    algorithm: str
    bits: int
    granularity: str

    @property
    def label(self) -> str:
        kind = {"CHANNELWISE": "channel", "BLOCKWISE_32": "block 32"}[self.granularity]
        return f"ai-edge-quantizer {EDGE_ALGORITHMS[self.algorithm]}, int{self.bits} {kind}"


EDGE_ALGORITHMS = {"MIN_MAX_UNIFORM_QUANT": "min-max", "OCTAV": "OCTAV", "MSE": "MSE", "GPTQ": "GPTQ", "HADAMARD_ROTATION": "Hadamard"}
EDGE_RUNS = tuple(
    EdgeRun(algorithm, bits, granularity)
    for bits, granularity in ((8, "CHANNELWISE"), (4, "BLOCKWISE_32"), (4, "CHANNELWISE"))
    for algorithm in EDGE_ALGORITHMS
)


def generic_file(checkpoint: Path, path: Path, *, length: int, prefill: int) -> Path:
    """A float32 file of the generic path: prefill_<T> with logits, and decode."""
    model, builder = build_model(checkpoint, kv_cache_max_len=length), Signatures()
    for spec in signature_specs([prefill], prefill_logits=True):
        whole = WholeDecoder(model, spec)
        builder = builder.signature(spec.name, whole, sample_kwargs=whole.sample_inputs())
    builder.convert().export(path)
    return path


def edge_quantized(source: Path, path: Path, run: EdgeRun, calibration: Sequence[Piece]) -> Path:
    """`source` as ai-edge-quantizer writes it. Each calibration piece fills the prefill signature, from an empty cache."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    algorithm, operators = AlgorithmName[run.algorithm], qtyping.TFLOperationName
    embedding = AlgorithmName.MIN_MAX_UNIFORM_QUANT if run.algorithm == "GPTQ" else algorithm  # which it has for FULLY_CONNECTED only
    granularity = qtyping.QuantGranularity[run.granularity]
    with quiet():
        work = quantizer.Quantizer(source)
        try:
            work.add_dynamic_config(".*", operators.FULLY_CONNECTED, run.bits, granularity, algorithm)
            work.add_dynamic_config(".*", operators.EMBEDDING_LOOKUP, run.bits, granularity, embedding)
            seen = work.calibrate(_edge_inputs(source, calibration), num_threads=1) if work.need_calibration else None
            content = work.quantize(seen, enable_progress_report=False, enable_progress_bar=False).quantized_model
        except (ValueError, RuntimeError, AssertionError) as error:
            raise NotPossible(f"refuses: {str(error).splitlines()[0].split('Error: ')[-1]}") from error
    path.write_bytes(bytes(content))
    return path


def _edge_inputs(source: Path, calibration: Sequence[Piece]) -> dict[str, list[dict[str, Any]]]:
    spec = read_model_file(source).prefill[0]
    full = [piece.ids[: spec.length] for piece in calibration if len(piece.ids) > spec.length]
    if not full:
        raise NotPossible(f"no calibration text of {spec.length} tokens")
    caches = {name: np.zeros(cache.shape, cache.dtype) for name, cache in spec.caches.items()}
    positions = np.arange(spec.length, dtype=np.int32)
    return {spec.name: [{"tokens": np.array([ids], np.int32), "input_pos": positions, **caches} for ids in full]}


@dataclass(frozen=True)
class GgmlRun:
    """A file type of llama-quantize. `pure`: every matrix of that type. `imatrix`: weighed by calibration text's activations."""

    file_type: str
    pure: bool = False
    imatrix: bool = False

    @property
    def label(self) -> str:
        return f"llama.cpp {self.file_type}{' --pure' if self.pure else ''}{' --imatrix' if self.imatrix else ''}, weights only"


FILE_TYPES = {"Q8_0": Type.Q8_0, "Q4_0": Type.Q4_0, "Q4_K_S": Type.Q4_K, "Q4_K_M": Type.Q4_K}
GGML_RUNS = (
    GgmlRun("Q8_0"),
    GgmlRun("Q4_0", pure=True),
    GgmlRun("Q4_0"),
    GgmlRun("Q4_0", imatrix=True),
    GgmlRun("Q4_K_S"),
    GgmlRun("Q4_K_M"),
    GgmlRun("Q4_K_S", imatrix=True),
    GgmlRun("Q4_K_M", imatrix=True),
)
FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""For columns that are no multiple of 256."""


class Ggml:
    """Quantization of rows: by ggml's C code where its shared library is given, else by gguf's Python, which has no K types."""

    def __init__(self, library: Path | None) -> None:
        self._quantize_chunk: Callable[..., int] | None = None
        if library is not None:
            function = ctypes.CDLL(str(library.resolve())).ggml_quantize_chunk
            pointer = np.ctypeslib.ndpointer(np.float32, flags="C")
            function.argtypes = [ctypes.c_int, pointer, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
            function.restype = ctypes.c_size_t
            self._quantize_chunk = function

    def there_and_back(self, values: Array, kind: Type, importance: Array | None) -> tuple[Array, int]:
        """The values [R, C] as the type keeps them, and its bytes."""
        block, size = GGML_QUANT_SIZES[kind]
        rows, columns = values.shape
        total = rows * columns // block * size
        if kind == Type.F16:
            return values.astype(np.float16).astype(np.float32), total
        if self._quantize_chunk is not None:
            packed = np.zeros((rows, columns // block * size), np.uint8)
            weights = None if importance is None else importance.ctypes.data
            written = self._quantize_chunk(int(kind), np.ascontiguousarray(values), packed.ctypes.data, 0, rows, columns, weights)
            assert written == total
        elif importance is not None:
            raise NotPossible("an imatrix needs ggml's library: give it with --ggml")
        else:
            try:
                packed = gguf.quants.quantize(values, kind)
            except NotImplementedError:
                raise NotPossible(f"{kind.name} needs ggml's library: give it with --ggml") from None
        return gguf.quants.dequantize(packed, kind).reshape(values.shape), total


class Requantized(EagerReference):
    """The eager model with its matrices as a llama.cpp file would hold them; `bytes` of them, and what is worth a note."""

    name = "llama.cpp's weights"

    def __init__(self, checkpoint: Path, run: GgmlRun, ggml: Ggml, *, length: int, calibration: Sequence[Piece] = ()) -> None:
        super().__init__(checkpoint, length=length)
        self.bytes = 0
        importance = self._importance(calibration) if run.imatrix else {}
        fallen = set[str]()
        for name, rows, role, layer in matrices(self._model):
            kind = _type(run, role, layer, len(self._model.blocks), rows.shape[1])
            weights = importance.get(name) if role not in ("head", "embedding") else None
            values, size = ggml.there_and_back(rows.numpy(), kind, weights)
            rows.copy_(torch.from_numpy(values))
            self.bytes += size
            if kind not in (FILE_TYPES[run.file_type], Type.Q6_K, Type.Q5_K):
                fallen.add(kind.name)
        self.note = f"some as {', '.join(sorted(fallen))}" if fallen else ""

    def _importance(self, calibration: Sequence[Piece]) -> dict[str, Array]:
        """Mean square of each matrix's input channels over the text, as llama-imatrix has it."""
        sums: dict[str, torch.Tensor] = {}
        hooks = []
        for name, module in self._model.named_modules():
            if isinstance(getattr(module, "weight", None), torch.Tensor) and name.startswith("blocks.") and "norm" not in name:

                def add(_: Any, inputs: tuple[torch.Tensor, ...], name: str = f"{name}.weight") -> None:
                    sums[name] = sums.get(name, torch.zeros(())) + inputs[0].flatten(0, -2).square().sum(0)

                hooks.append(module.register_forward_pre_hook(add))
        for piece in calibration:
            self.reset()
            self.feed(piece.ids[:-1])
        for hook in hooks:
            hook.remove()
        self.reset()
        count = sum(len(piece.ids) - 1 for piece in calibration)
        return {name: np.ascontiguousarray((total / count).numpy(), np.float32) for name, total in sums.items()}


def matrices(model: Decoder) -> Iterator[tuple[str, torch.Tensor, str, int]]:
    """Name of the parameter, rows of it (a view), what llama.cpp's rules know them as, and the layer."""
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or "norm" in name:
            continue
        rows, layer = parameter.data, int(name.split(".")[1]) if name.startswith("blocks.") else -1
        if name == "embedding.weight":
            yield name, rows, "head" if model.config.tied_head else "embedding", layer
        elif name == "lm_head.weight":
            yield name, rows, "head", layer
        elif name.endswith("attention.qkv.weight"):
            attention = model.config.blocks[layer].attention
            values = rows.shape[0] - attention.num_kv_heads * attention.head_dim
            yield name, rows[:values], "query and key", layer
            yield name, rows[values:], "value", layer
        else:
            yield name, rows, "down" if name.endswith("down.weight") else "other", layer


def _type(run: GgmlRun, role: str, layer: int, layers: int, columns: int) -> Type:
    kind = FILE_TYPES[run.file_type]
    if not run.pure:
        kind = _mixed_type(run, kind, role, layer, layers, columns)
        if columns % GGML_QUANT_SIZES[kind][0]:
            if kind not in FALLBACKS:
                raise NotPossible(
                    f"refuses: {columns} columns are no multiple of {GGML_QUANT_SIZES[kind][0]}, and {kind.name} has no fallback"
                )
            kind = FALLBACKS[kind]
            kind = Type.F16 if columns % GGML_QUANT_SIZES[kind][0] else kind
    elif columns % GGML_QUANT_SIZES[kind][0]:
        raise NotPossible(f"refuses: {columns} columns are no multiple of {GGML_QUANT_SIZES[kind][0]}")
    return kind


def _mixed_type(run: GgmlRun, kind: Type, role: str, layer: int, layers: int, columns: int) -> Type:
    first_eighth = layer < layers // 8
    more_bits = first_eighth or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if role == "head":
        return Type.Q8_0 if kind == Type.Q8_0 or columns % GGML_QUANT_SIZES[kind][0] else Type.Q6_K
    if run.file_type == "Q4_K_M" and role in ("value", "down") and more_bits:
        return Type.Q6_K
    if run.file_type == "Q4_K_S" and ((role == "value" and layer < 4) or (role == "down" and first_eighth)):
        return Type.Q5_K
    if run.file_type == "Q4_0" and run.imatrix and role == "down" and first_eighth:
        return Type.Q4_1
    return kind


def versions() -> Mapping[str, str]:
    """Of the peers."""
    from importlib.metadata import version

    return {name: version(name) for name in ("ai-edge-quantizer", "gguf")} | {"python": sys.version.split()[0]}
