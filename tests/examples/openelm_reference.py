"""OpenELM in plain torch, on a dictionary of tensors: transformers has no class for it.

Written from the published description (Mehta et al. 2024, arXiv 2404.14619, section 2, and the model's own modeling_openelm.py),
independently of flatlm: it reads a whole text at once, head by head, without a cache.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

Weights = dict[str, Tensor]
CONFIG = {
    "architectures": ["OpenELMForCausalLM"],
    "model_type": "openelm",
    "activation_fn_name": "swish",
    "ffn_dim_divisor": 16,
    "ffn_multipliers": [0.5, 0.93, 1.4],
    "ffn_with_glu": True,
    "head_dim": 16,
    "initializer_range": 0.02,
    "max_context_length": 64,
    "model_dim": 64,
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "num_gqa_groups": 2,
    "num_kv_heads": [1, 2, 3],
    "num_query_heads": [2, 4, 6],
    "num_transformer_layers": 3,
    "qkv_multipliers": [0.5, 1.0],
    "rope_freq_constant": 10000,
    "rope_max_length": 128,
    "share_input_output_layers": True,
    "use_cache": True,
    "vocab_size": 128,
}


def feed_forward_widths(config: dict[str, Any]) -> list[int]:
    """Multiples of the divisor: the nearest, and one more where rounding down lost more than a tenth."""
    widths = []
    for multiplier in config["ffn_multipliers"]:
        wanted, step = multiplier * config["model_dim"], config["ffn_dim_divisor"]
        width = max(step, step * int((wanted + step / 2) // step))
        widths.append(width + step if width < 0.9 * wanted else width)
    return widths


def make_checkpoint(config: dict[str, Any], directory: Path, *, seed: int = 0) -> Weights:
    """Random weights of the names and shapes that published checkpoints have, saved beside config.json."""
    dim, head, generator = config["model_dim"], config["head_dim"], torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embeddings": (config["vocab_size"], dim), "norm": (dim,)}
    heads = zip(config["num_query_heads"], config["num_kv_heads"], feed_forward_widths(config), strict=True)
    for layer, (queries, keys, width) in enumerate(heads):
        name = f"layers.{layer}"
        shapes |= {f"{name}.attn.qkv_proj": ((queries + 2 * keys) * head, dim), f"{name}.attn.out_proj": (dim, queries * head)}
        shapes |= {f"{name}.attn_norm": (dim,), f"{name}.ffn_norm": (dim,)}
        shapes |= {f"{name}.ffn.proj_1": ((1 + config["ffn_with_glu"]) * width, dim), f"{name}.ffn.proj_2": (dim, width)}
        if config["normalize_qk_projections"]:
            shapes |= {f"{name}.attn.q_norm": (head,), f"{name}.attn.k_norm": (head,)}
    weights = {
        f"transformer.{name}.weight": 1 + 0.3 * noise if len(shape) == 1 else 0.2 * noise
        for name, shape in shapes.items()
        for noise in [torch.randn(shape, generator=generator)]
    }
    if not config["share_input_output_layers"]:
        weights["lm_head.weight"] = 0.2 * torch.randn(config["vocab_size"], dim, generator=generator)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return weights


def forward(config: dict[str, Any], weights: Weights, ids: Tensor) -> Tensor:
    """Logits [T, V] for ids [T]."""
    x = weights["transformer.token_embeddings.weight"][ids]
    for layer in range(config["num_transformer_layers"]):
        own = {name.removeprefix(f"transformer.layers.{layer}."): value for name, value in weights.items() if f".layers.{layer}." in name}
        x = x + attention(
            config, own, rms_norm(x, own["attn_norm.weight"]), config["num_query_heads"][layer], config["num_kv_heads"][layer]
        )
        x = x + feed_forward(config, own, rms_norm(x, own["ffn_norm.weight"]))
    head = "transformer.token_embeddings.weight" if config["share_input_output_layers"] else "lm_head.weight"
    return linear(rms_norm(x, weights["transformer.norm.weight"]), weights[head])


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def attention(config: dict[str, Any], own: Weights, x: Tensor, query_heads: int, kv_heads: int) -> Tensor:
    width, tokens = config["head_dim"], len(x)
    heads = linear(x, own["attn.qkv_proj.weight"]).split(width, dim=-1)  # queries, then keys, then values
    queries, keys, values = heads[:query_heads], heads[query_heads : query_heads + kv_heads], heads[query_heads + kv_heads :]
    if config["normalize_qk_projections"]:
        queries = [rms_norm(head, own["attn.q_norm.weight"]) for head in queries]
        keys = [rms_norm(head, own["attn.k_norm.weight"]) for head in keys]
    queries, keys = (
        [turned(head, config["rope_freq_constant"]) for head in queries],
        [turned(h, config["rope_freq_constant"]) for h in keys],
    )
    unseen = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    out = []
    for index, query in enumerate(queries):
        group = index // (query_heads // kv_heads)
        scores = (query @ keys[group].T / width**0.5).masked_fill(unseen, float("-inf"))
        out.append(scores.softmax(-1) @ values[group])
    return linear(torch.cat(out, -1), own["attn.out_proj.weight"])


def turned(head: Tensor, base: float) -> Tensor:
    """A head [T, H], its entries i and i + H/2 turned by the position times base^(-2i/H), as complex numbers."""
    half = head.shape[-1] // 2
    angles = torch.arange(len(head), dtype=torch.float64)[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    spun = torch.complex(head[:, :half].double(), head[:, half:].double()) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([spun.real, spun.imag], -1).float()


def feed_forward(config: dict[str, Any], own: Weights, x: Tensor) -> Tensor:
    activate = {"swish": silu, "gelu": gelu}[config["activation_fn_name"]]
    inner = linear(x, own["ffn.proj_1.weight"])
    if config["ffn_with_glu"]:
        gate, up = inner.chunk(2, -1)
        return linear(activate(gate) * up, own["ffn.proj_2.weight"])
    return linear(activate(inner), own["ffn.proj_2.weight"])
