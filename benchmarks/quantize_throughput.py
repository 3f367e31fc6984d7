"""How fast weights are quantized, from bfloat16 in memory to stored integers in memory, against copying and against others.

    python benchmarks/quantize_throughput.py [--rows 16384] [--columns 2048] [--threads N] [--repeats 5]

prints a Markdown table. Each figure is the best of the repeats. GB/s counts the bytes read (2 a parameter) and the bytes
written (data and scales). "of copying" is that rate over the rate of torch's own copy of the same bfloat16 weight on as many
threads; "of whole-tensor" is over the plain torch expression on the whole tensor, with torch's own threads.

2 processors (AMD EPYC 9004, virtual), torch 2.13.0, numpy 2.4.6, ai-edge-quantizer 0.10.0, gguf 0.19.0, at raised priority beside
other work that wanted seven processors (so that the machine at rest does better, above all with 2 threads), 12 repeats; copying 47.6 GB/s:

| scheme | G parameters/s | on 1 thread | GB/s | of copying | of whole-tensor | whole-tensor | ai-edge-quantizer | gguf |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| float32 | 3.50 | 2.39 | 21.0 | 44% | 5.2x | 0.67 | - | - |
| float16 | 3.77 | 2.35 | 15.1 | 32% | 3.8x | 0.99 | - | - |
| dynamic_int8 | 2.57 | 1.85 | 7.7 | 16% | 21.2x | 0.12 | 0.141 | 0.143 |
| dynamic_int4_block32 | 1.85 | 1.30 | 4.7 | 10% | 15.5x | 0.12 | 0.132 | 0.143 |
| dynamic_int4_block128 | 1.67 | 1.43 | 4.2 | 9% | 14.7x | 0.11 | 0.194 | - |
| dynamic_int4_channel | 2.07 | 1.56 | 5.2 | 11% | 17.5x | 0.12 | 0.170 | - |

What the steps cost on one thread, ns a parameter, in cache (each about as fast as a copy there): bfloat16 to float32 0.09, amax 0.05 and
amin 0.05 (per row) or abs 0.10 and amax of the bits 0.10 (blocks of 32), division 0.12 (by a product with the reciprocal: 0.10, but other
integers), rounding 0.10, float32 to int8 0.06, packing two int4 a byte 0.12. Tried and left: aminmax (2.2), vector_norm(inf) (2.6; 4.9 in
blocks), amax of bfloat16 (0.24), a strided copy of the low byte (0.60), quantize_per_channel (3.4), numpy's maximum in blocks (1.8).
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from flatlm.quantize.encode import Encoded, encode_stream
from flatlm.quantize.schemes import SCHEMES, Scheme


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least of some runs' durations, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(weight: torch.Tensor, scheme: Scheme, threads: int) -> Callable[[], object]:
    """encode_stream into arrays of the whole weight, as a writer would."""
    data = np.empty(scheme.nbytes(weight.shape), np.uint8).reshape(weight.shape[0], -1)
    scales_shape = scheme.scales_shape(weight.shape)
    scales = None if scales_shape is None else np.empty(scales_shape, np.float32 if scheme.block_size is None else np.float16)

    def keep(start: int, stop: int, part: Encoded) -> None:
        data[start:stop] = part.data.view(np.uint8)
        if scales is not None:
            scales[start:stop] = part.scales

    return lambda: encode_stream(lambda start, stop: weight[start:stop], weight.shape, scheme, keep, threads)


def whole_tensor(weight: torch.Tensor, scheme: Scheme) -> Callable[[], object]:
    """The formula as one would write it down: each step over all of the weight."""
    if not scheme.quantized:
        return lambda: weight.to(torch.float32 if scheme.storage == "float32" else torch.float16)

    def work() -> object:
        groups = weight.float().reshape(-1, scheme.block_size or weight.shape[1])
        scale = (groups.abs().amax(1) / scheme.levels).clamp_min(1e-6)
        if scheme.block_size is not None:
            scale = scale.bfloat16().half().float()
        integers = (groups / scale[:, None]).round().clamp(-scheme.levels, scheme.levels).to(torch.int8)
        if scheme.storage == "int8":
            return integers
        nibbles = integers.view(torch.uint8) & 15
        return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)

    return work


def ai_edge_quantizer(weight: torch.Tensor, scheme: Scheme) -> Callable[[], object] | None:
    """Its min-max quantization of a float32 weight (numpy, one thread), without the packing of int4."""
    try:
        from ai_edge_quantizer import qtyping
        from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as peer
    except ImportError:
        return None
    if not scheme.quantized:
        return None
    granularity = qtyping.QuantGranularity[f"BLOCKWISE_{scheme.block_size}" if scheme.block_size else "CHANNELWISE"]
    bits = {"int8": 8, "int4": 4}[scheme.storage]

    def work() -> object:
        groups = weight.float().reshape(-1, scheme.block_size or weight.shape[1]).numpy()
        zero, scale = peer.tensor_zp_scale_from_min_max(groups.min(1, keepdims=True), groups.max(1, keepdims=True), bits, True, granularity)
        return peer.uniform_quantize(
            groups, qtyping.UniformQuantParams(num_bits=bits, quantized_dimension=None, scale=scale, zero_point=zero)
        )

    return work


def gguf(weight: torch.Tensor, scheme: Scheme) -> Callable[[], object] | None:
    """Its Python quantization (what convert_hf_to_gguf.py runs): Q8_0 (int8 in blocks of 32) and Q4_0 (int4 in blocks of 32)."""
    kind = {"dynamic_int8": "Q8_0", "dynamic_int4_block32": "Q4_0"}.get(scheme.name)
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        return None
    return None if kind is None else lambda: quants.quantize(weight.float().numpy(), GGMLQuantizationType[kind])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    weight = (torch.randn(options.rows, options.columns, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    copy = torch.empty_like(weight)
    copying = 2 * weight.nbytes / best_seconds(lambda: copy.copy_(weight), options.repeats * 4)
    print(f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, numpy {np.__version__}; ", end="")
    print(f"{options.rows} x {options.columns} bfloat16, {options.threads} threads; copying: {copying / 1e9:.1f} GB/s read and written\n")
    columns = [
        "scheme",
        "G parameters/s",
        "on 1 thread",
        "GB/s",
        "of copying",
        "of whole-tensor",
        "whole-tensor",
        "ai-edge-quantizer",
        "gguf",
    ]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for scheme in SCHEMES.values():
        if scheme.name == "weight_only_int8":  # stored as dynamic_int8 is
            continue

        def rate(work: Callable[[], object] | None, repeats: int) -> float | None:
            return None if work is None else weight.numel() / best_seconds(work, repeats) / 1e9

        bytes_moved = weight.element_size() + (scheme.nbytes(weight.shape) + scheme.scales_nbytes(weight.shape)) / weight.numel()
        several = rate(ours(weight, scheme, options.threads), options.repeats) or 0.0
        single = rate(ours(weight, scheme, 1), options.repeats)
        naive = rate(whole_tensor(weight, scheme), 2) or 0.0
        others = [rate(peer(weight, scheme), 1) for peer in (ai_edge_quantizer, gguf)]
        cells = [f"{several:.2f}", f"{single:.2f}", f"{several * bytes_moved:.1f}", f"{several * bytes_moved * 1e9 / copying:.0%}"]
        cells += [f"{several / naive:.1f}x", f"{naive:.2f}", *("-" if other is None else f"{other:.3f}" for other in others)]
        print(f"| {scheme.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
