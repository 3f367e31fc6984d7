"""Write a checkpoint of random bfloat16 weights, for measuring exports where real weights cannot be had. This one is shaped like a Llama:

python -m benchmarks.random_checkpoint OUT_DIR --layers 8 --hidden 2048 --feed-forward 8192 [--heads 16] [--kv-heads 8] [--vocab 32000]
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.published_tensors import hub_forms

BLOCK = 16 << 20
"""Random numbers that a checkpoint is made of, again and again."""


def write_checkpoint(directory: Path, config: Mapping[str, Any]) -> int:
    """Random weights under the names and shapes that the reference's class gives to this config.json; returns how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    values = 0.02 * np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32)
    block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header, offset = {}, 0
    for name, shape in hub_forms(config)["published"].items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, len(block)):
            file.write(block[: offset - start])
    return offset // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--feed-forward", type=int, required=True)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32000)
    args = parser.parse_args()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": args.feed_forward,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    print(f"{args.out}: {2 * write_checkpoint(args.out, config) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
