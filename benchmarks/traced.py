"""What finding repeated layers saves where a module runs its own loop over them: TinyLlama's shape, its graph made from parts and whole.

    python -m benchmarks.traced [--layers 2,4,22] [--prefill 128]

No weights: a decoder on the meta device, its layers by their whole names, as an author's own module would have them; the signatures
prefill_<T> and decode. Each way is timed in this process once, after a first graph that pays for imports. Prints a Markdown table.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from flatlm.commands.base import comma_separated_lengths
from flatlm.convert.compile import compile_pieces
from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.signatures import signature_specs
from flatlm.convert.stamp import stamp
from flatlm.convert.traced import SplitSignature, TracedSignature, split_signature, whole
from flatlm.examples.tiny_llama import get_model_config
from flatlm.layers import ops
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.layers.model import build_on_meta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=comma_separated_lengths, default=(2, 4, 22))
    parser.add_argument("--prefill", type=int, default=128)
    args = parser.parse_args()
    _measure(_signatures(2, args.prefill), split_signature)
    print("| layers | way | pieces | trace and cut, s | convert and stamp, s | in all, s | operators |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for layers in args.layers:
        for name, way in (("parts", split_signature), ("whole", whole)):
            pieces, tracing, converting, operators = _measure(_signatures(layers, args.prefill), way)
            seconds = f"{tracing:.1f} | {converting:.1f} | {tracing + converting:.1f}"
            print(f"| {layers} | {name} | {pieces} | {seconds} | {operators} |", flush=True)


def _signatures(layers: int, prefill: int) -> list[TracedSignature]:
    config = get_model_config()
    model = build_on_meta(replace(config, blocks=config.blocks[:layers]), CacheGeometry(1024, prefill))
    for index, block in enumerate(model.blocks):
        ops.name_layers(block, f"model.layers.{index}")
    found = []
    for spec in signature_specs((prefill,), prefill_logits=False):
        call = WholeDecoder(model, spec)
        inputs = call.sample_inputs()
        outputs = [*(name for name in inputs if name.startswith("kv_cache")), *(["logits"] if spec.logits else [])]
        found.append(TracedSignature(spec.name, call, inputs, outputs))
    return found


def _measure(signatures: Sequence[TracedSignature], way: Callable[[TracedSignature], SplitSignature]) -> tuple[int, float, float, int]:
    """How many pieces; seconds to find them, and to make the graph of them; its operators."""
    start = time.perf_counter()
    split = [way(signature) for signature in signatures]
    found = time.perf_counter()
    pieces = [piece for each in split for piece in each.pieces]
    model = stamp(compile_pieces(pieces), [each.plan for each in split])
    return len(pieces), found - start, time.perf_counter() - found, sum(len(graph.operators) for graph in model.subgraphs)


if __name__ == "__main__":
    main()
