"""Tiny reference models from transformers, every parameter random, saved as the checkpoints that people have."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Case:
    """One configuration of one family: the keys that differ from the base."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


LLAMA_BASE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA_CASES = [
    Case("llama2", {"num_key_value_heads": 4}),
    Case("grouped_queries"),
    Case("one_key_value_head", {"num_key_value_heads": 1}),
    Case("llama3_rope_scaling", {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3_ROPE}}),
    Case("linear_rope_scaling", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}}),
    Case("rope_base", {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}}),
    Case("tied_head", {"tie_word_embeddings": True}),
    Case("biases", {"attention_bias": True, "mlp_bias": True}),
    Case("wide_heads", {"head_dim": 32}),
    Case("gelu", {"hidden_act": "gelu"}),
    Case("gelu_tanh", {"hidden_act": "gelu_pytorch_tanh"}),
    Case("relu", {"hidden_act": "relu"}),
    Case("eps", {"rms_norm_eps": 1e-2}),
]


def make_llama(case: Case, directory: Path, *, seed: int = 0, **save: Any) -> transformers.LlamaForCausalLM:
    """The reference, in evaluation mode, saved to `directory`. Norms and biases are random too, so that a swap shows."""
    generator = torch.Generator().manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA_BASE, **case.config})).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if "norm" in name else 0.2 * noise
    model.save_pretrained(directory, **save)
    return model
