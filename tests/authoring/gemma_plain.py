"""Gemma in plain torch, by someone who knows no builders: bare parameters, tables of its own, hooks for what is stored otherwise."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import nn

from flatlm.authoring.load_weights import load_weight
from flatlm.authoring.modules import Attention


class GemmaNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight.float())


class Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.keys, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.input_layernorm = GemmaNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = GemmaNorm(config.hidden_size, config.rms_norm_eps)
        # [in, out], as Conv1D keeps it, while the checkpoint has three matrices [out, in].
        self.qkv = nn.Parameter(torch.empty(config.hidden_size, (self.heads + 2 * self.keys) * self.width))
        self.qkv.weight_loader = self.load_transposed  # type: ignore[attr-defined]
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)
        self.attention = Attention(self.heads, self.width, num_kv_heads=self.keys)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def load_transposed(self, param: torch.Tensor, loaded_weight: torch.Tensor, shard_id: str) -> None:
        first, count = {"q": (0, self.heads), "k": (self.heads, self.keys), "v": (self.heads + self.keys, self.keys)}[shard_id]
        param.data[:, first * self.width : (first + count) * self.width] = loaded_weight.t()

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Any) -> torch.Tensor:
        qkv = (self.input_layernorm(x) @ self.qkv).unflatten(-1, (-1, self.width))
        qk, v = qkv[:, :, : self.heads + self.keys], qkv[:, :, self.heads + self.keys :]
        half = self.width // 2
        qk = qk * cos + torch.cat([-qk[..., half:], qk[..., :half]], -1) * sin
        attended = self.attention(qk[:, :, : self.heads], qk[:, :, self.heads :], v, *cache)
        x = x + self.o_proj(attended.flatten(-2))
        read = self.post_attention_layernorm(x)
        return x + self.down_proj(F.gelu(self.gate_proj(read), approximate="tanh") * self.up_proj(read))


class PlainGemma(nn.Module):
    def __init__(self, config: Any, ctx_mgr: Any) -> None:
        super().__init__()
        if config.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
            raise ValueError(f"hidden_act {config.hidden_act}")
        self.scale = config.hidden_size**0.5
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = GemmaNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self.register_buffer("inv_freq", 1.0 / config.rope_theta**exponents, persistent=False)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, past_key_values: Any) -> torch.Tensor:
        angles = position_ids[..., None].float() * self.inv_freq
        cos, sin = (torch.cat([part, part], -1)[:, :, None, :] for part in (angles.cos(), angles.sin()))
        x = self.embed_tokens(input_ids) * self.scale
        for layer, cache in zip(self.layers, past_key_values, strict=True):
            x = layer(x, cos, sin, cache)
        return self.norm(x)

    def get_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden_states)

    def update_weights(self) -> None:
        self.lm_head.weight = self.embed_tokens.weight

    def rename_weight(self, name: str) -> str:
        return name.removeprefix("model.").replace("self_attn.", "").replace("mlp.", "")

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, loaded_weight in weights:
            for shard in "qkv":
                if name.endswith(f".{shard}_proj.weight"):
                    load_weight(parameters[name.replace(f"{shard}_proj.weight", "qkv")], loaded_weight, shard_id=shard)
                    break
            else:
                load_weight(parameters[name], loaded_weight)


MODULE_MAP = {"GemmaForCausalLM": "PlainGemma"}
