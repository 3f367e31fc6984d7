"""What a draft gains: greedy texts with and without, the same file, by turns.

    python -m benchmarks.speculation TARGET.tflite DRAFT.tflite --text FILE [--tokenizer DIR] [--tokens 128] [--prompts 8]

    python -m benchmarks.speculation --widen DIRECTORY [--of CHECKPOINT] [--more-layers 24]

Prompts are cut from a text (plain, or a JSON list of documents); every text is written by both, and must be the same token for token.
Prints a Markdown table. `--widen` writes a checkpoint of some 100 M parameters that computes what a small model does (the demo model, or
`--of`), since all that was added is zero: what a large model gains by a draft that is right as often as the small model's own.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.runner import Runner
from flatlm.generative.session import SessionRunner
from flatlm.generative.speculation import SpeculativeRunner
from flatlm.utilities.documents import read_documents

DEMO = Path(__file__).parents[1] / "flatlm" / "assets" / "demo_model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("draft", type=Path, nargs="?")
    parser.add_argument("--widen", type=Path, metavar="DIRECTORY")
    parser.add_argument("--of", type=Path, default=DEMO, metavar="CHECKPOINT")
    parser.add_argument("--more-layers", type=int, default=24)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8)
    args = parser.parse_args()
    if args.widen is not None:
        return widen(args.of, args.widen, args.more_layers)
    if args.target is None or args.draft is None or args.text is None:
        parser.error("give TARGET, DRAFT and --text FILE, or --widen DIRECTORY")
    tokenizer = file_tokenizer(args.target, args.tokenizer)
    prompts = [tokenizer.encode(text)[: args.prompt_tokens] for text in read_documents(args.text)[: args.prompts]]
    with Runner.open(args.target) as target, Runner.open(args.draft) as draft:
        speculative = SpeculativeRunner(target.sibling(), draft)
        ratios, same, speeds = [], 0, []
        for prompt in prompts:
            times = {}
            texts = {}
            for name, runner in (("alone", target), ("drafted", speculative), ("drafted again", speculative), ("alone again", target)):
                texts[name], times[name] = _write(runner, prompt, args.tokens)
            same += texts["alone"] == texts["drafted"]
            alone, drafted = times["alone"] + times["alone again"], times["drafted"] + times["drafted again"]
            ratios.append(alone / drafted)
            speeds.append((2 * args.tokens / alone, 2 * args.tokens / drafted))
        counts = speculative.counts
        print(json.dumps({"same": same, "prompts": len(prompts), "ratios": ratios}), file=sys.stderr)
        print("| target | draft | tokens/s alone | with the draft | gain (min to max) | accepted | tokens a call | same texts |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        print(
            f"| {args.target.name} | {args.draft.name} "
            f"| {statistics.median(s[0] for s in speeds):,.0f} | {statistics.median(s[1] for s in speeds):,.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {counts.acceptance or 0:.0%} "
            f"| {counts.tokens / counts.target_calls:.2f} | {same} of {len(prompts)} |"
        )


def widen(small: Path, directory: Path, layers: int, width: int = 8192) -> None:
    """A small Llama with so many more layers, which add nothing, and feed-forwards of so many columns, of which the new ones are zero."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in small.iterdir():
        if file.suffix == ".json":
            shutil.copyfile(file, directory / file.name)
    config = json.loads((small / "config.json").read_text())
    own = config["num_hidden_layers"]
    tensors = load_file(small / "model.safetensors")
    for name in [name for name in tensors if ".mlp." in name]:
        old, axis = tensors[name], 1 if "down_proj" in name else 0
        shape = [width if i == axis else size for i, size in enumerate(old.shape)]
        tensors[name] = torch.zeros(shape, dtype=old.dtype)
        tensors[name][: old.shape[0], : old.shape[1]] = old
    for layer in range(own, own + layers):
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            value = tensors[name]
            tensors[name.replace(".0.", f".{layer}.")] = value.clone() if "norm" in name else torch.zeros_like(value)
    save_file(tensors, directory / "model.safetensors")
    config |= {"num_hidden_layers": own + layers, "intermediate_size": width}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{directory}: {sum(tensor.numel() for tensor in tensors.values()) / 1e6:.0f} M parameters")


def _write(runner: SessionRunner, prompt: list[int], count: int) -> tuple[list[int], float]:
    """A greedy text, and the seconds of its steps."""
    runner.reset()
    runner.prefill(prompt[:-1])
    tokens = [prompt[-1]]
    began = time.perf_counter()
    for _ in range(count):
        tokens.append(int(runner.step(tokens[-1]).argmax()))
    return tokens[1:], time.perf_counter() - began


if __name__ == "__main__":
    main()
