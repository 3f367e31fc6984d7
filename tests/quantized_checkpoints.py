"""Small quantized checkpoints, packed by plain loops that follow the formats' descriptions, not our reader."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Linear:
    """A quantized weight: `integers` [R, C] centred at 0, `zeros` and `scales` [R, G], `group_of` each column."""

    integers: Tensor
    zeros: Tensor
    scales: Tensor
    group_of: Tensor
    bits: int

    @property
    def values(self) -> Tensor:
        """The exact weight, rounded to float32 once."""
        spread = self.zeros[:, self.group_of].double(), self.scales[:, self.group_of].double()
        return ((self.integers.double() - spread[0]) * spread[1]).float()

    @property
    def group_size(self) -> int:
        return self.integers.shape[1] // self.scales.shape[1]


def random_linear(
    rows: int,
    columns: int,
    *,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = True,
    act_order: bool = False,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Linear:
    """Every integer of the range is there, also the lowest. Weights are about 0.1 in size."""
    generator = torch.Generator().manual_seed(seed)
    groups = columns // (group_size or columns)
    half = 2 ** (bits - 1)
    integers = torch.randint(-half, half, (rows, columns), generator=generator)
    zeros = torch.zeros(rows, groups, dtype=torch.int64)
    if not symmetric:
        zeros = torch.randint(-half, half, (rows, groups), generator=generator)
    scales = (0.1 / half * (0.5 + torch.rand(rows, groups, generator=generator))).to(dtype)
    group_of = torch.arange(columns) // (columns // groups)
    if act_order:
        group_of = group_of[torch.randperm(columns, generator=generator)]
    return Linear(integers, zeros, scales, group_of, bits)


def pack(rows: Tensor, bits: int) -> Tensor:
    """Unsigned numbers [n, m] to int32 words [n, ceil(m * bits / 32)], the first number in the lowest bits."""
    packed = []
    for row in rows.tolist():
        number = sum(value << (bits * place) for place, value in enumerate(row))
        words = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(row) * bits // 32))]
        packed.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(packed, dtype=torch.int32)


def gptq(linear: Linear, *, less_one: bool = True) -> dict[str, Tensor]:
    bits, half = linear.bits, 2 ** (linear.bits - 1)
    zeros = (linear.zeros + half - int(less_one)) % 2**bits
    return {
        "qweight": pack(linear.integers + half, bits).t().contiguous(),
        "qzeros": pack(zeros.t(), bits),
        "scales": linear.scales.t().contiguous(),
        "g_idx": linear.group_of.to(torch.int32),
    }


def awq(linear: Linear) -> dict[str, Tensor]:
    def words(numbers: Tensor) -> Tensor:
        lines = [[line[first + place] for first in range(0, len(line), 8) for place in AWQ_ORDER] for line in numbers.tolist()]
        return pack(torch.tensor(lines), 4)

    return {
        "qweight": words(linear.integers.t() + 8),
        "qzeros": words(linear.zeros.t() + 8),
        "scales": linear.scales.t().contiguous(),
    }


def pack_quantized(linear: Linear) -> dict[str, Tensor]:
    half = 2 ** (linear.bits - 1)
    tensors = {
        "weight_packed": pack(linear.integers + half, linear.bits),
        "weight_shape": torch.tensor(linear.integers.shape),
        "weight_scale": linear.scales.clone(),
    }
    if linear.zeros.any():
        tensors["weight_zero_point"] = pack(linear.zeros.t() + half, linear.bits).t().contiguous()
    return tensors


def int_quantized(linear: Linear) -> dict[str, Tensor]:
    tensors = {"weight": linear.integers.to(torch.int8), "weight_scale": linear.scales.clone()}
    if linear.zeros.any():
        tensors["weight_zero_point"] = linear.zeros.to(torch.int8)
    return tensors


def gptq_config(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "damp_percent": 0.1, **changes}


def awq_config(**changes: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", **changes}


def compressed_config(form: str, *, activations: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    described = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False, "actorder": None}
    group = {"targets": ["Linear"], "weights": described | weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
    }


def save(
    directory: Path, tensors: dict[str, Tensor], quantization: dict[str, Any] | None, config: dict[str, Any] | None = None, **metadata: str
) -> Path:
    """A checkpoint directory."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors", metadata or None)
    settings = {} if quantization is None else {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps((config or {}) | settings))
    return directory


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
PROJECTIONS = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (256, 128),
    "mlp.up_proj": (256, 128),
    "mlp.down_proj": (128, 256),
}


def save_llama(
    directory: Path,
    quantization: dict[str, Any],
    packer: Callable[[Linear], dict[str, Tensor]],
    make: Callable[[str, int, int, int], Linear],
) -> dict[str, Linear]:
    """A tiny Llama whose projections are `make(name, rows, columns, seed)`, packed; returns them by module."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "model.embed_tokens.weight": torch.randn(96, 128, generator=generator),
        "lm_head.weight": torch.randn(96, 128, generator=generator) * 0.1,
        "model.norm.weight": 1 + 0.1 * torch.randn(128, generator=generator),
    }
    linears: dict[str, Linear] = {}
    for layer in range(LLAMA["num_hidden_layers"]):  # type: ignore[call-overload]
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = 1 + 0.1 * torch.randn(128, generator=generator)
        for projection, (rows, columns) in PROJECTIONS.items():
            name = f"{prefix}.{projection}"
            linears[name] = make(name, rows, columns, len(linears))
            tensors |= {f"{name}.{part}": tensor for part, tensor in packer(linears[name]).items()}
    save(directory, tensors, quantization, LLAMA)
    return linears
