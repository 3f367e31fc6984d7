"""Tiny reference models from transformers, every parameter random, saved as the checkpoints that people have."""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Case:
    """One configuration of one family: transformers' class, and the keys of its config. `exported`: also run as an exported file.

    `spread`: the standard deviation of the random weights.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    family: str = "llama"
    reference: str = "LlamaForCausalLM"
    exported: bool = False
    spread: float = 0.2

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


@dataclass(frozen=True)
class Family:
    """Makes a family's cases: the class, and the keys that all its cases begin with."""

    name: str
    reference: str
    base: dict[str, Any]
    spread: float = 0.2

    def case(self, name: str, *, exported: bool = False, **config: Any) -> Case:
        return Case(name, {**self.base, **config}, self.name, self.reference, exported, self.spread)


def make_reference(case: Case, directory: Path, *, seed: int = 0, decided: bool = False, **save: Any) -> Any:
    """The reference, in evaluation mode, saved to `directory`. Norms and biases are random too, so that a swap shows.

    `decided`: it has a clear favourite for most tokens, as trained models have; the logits of purely random weights are near ties.
    """
    model_class = getattr(transformers, case.reference)
    model = model_class(model_class.config_class(**deepcopy(case.config))).eval()
    randomise(model, seed=seed, spread=case.spread)
    if decided:
        decide(model)
    model.save_pretrained(directory, **save)
    return model


def randomise(model: torch.nn.Module, *, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = 1 + 0.3 * noise if is_scale else spread * noise


def decide(model: Any) -> None:
    """Make each token's own embedding count for more than the layers, and let it point at the head's row of another token."""
    embedding, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.data_ptr() not in (embedding.data_ptr(), head.data_ptr()):
            parameter.data *= 0.4
    embedding *= 2
    if head.data_ptr() != embedding.data_ptr():
        head.mul_(0.1).add_(0.5 * embedding.roll(5, 0))


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


def make_llama(case: Case, directory: Path, *, seed: int = 0, **save: Any) -> Any:
    """A Llama, the keys of its config that the case does not give as LLAMA_BASE has them."""
    return make_reference(replace(case, config={**LLAMA_BASE, **case.config}), directory, seed=seed, **save)
