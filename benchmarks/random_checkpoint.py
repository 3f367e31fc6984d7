"""Write a Llama-shaped checkpoint of random bfloat16 weights, a piece at a time, for measuring exports where real weights cannot be had.

python benchmarks/random_checkpoint.py OUT_DIR --layers 8 --hidden 2048 --feed-forward 8192 [--heads 16] [--kv-heads 8] [--vocab 32000]
"""

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PIECE = 4 << 20


def shapes(layers: int, hidden: int, feed_forward: int, heads: int, kv_heads: int, vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = hidden // heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{at}.self_attn.k_proj.weight", (kv_heads * width, hidden)
        yield f"{at}.self_attn.v_proj.weight", (kv_heads * width, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (feed_forward, hidden)
        yield f"{at}.mlp.up_proj.weight", (feed_forward, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, feed_forward)
    yield "model.norm.weight", (hidden,)


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
    args.out.mkdir(parents=True, exist_ok=True)
    header, offset = {}, 0
    for name, shape in shapes(args.layers, args.hidden, args.feed_forward, args.heads, args.kv_heads, args.vocab):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with (args.out / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            left = int(np.prod(entry["shape"]))
            centre, spread = (1.0, 0.1) if len(entry["shape"]) == 1 else (0.0, 0.02)
            while left:
                values = centre + spread * rng.standard_normal(min(left, PIECE), dtype=np.float32)
                file.write((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= len(values)
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
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{args.out}: {offset / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
