"""Blank infilling GLM in plain eager torch, from its description: the family is held to it, since transformers has no class for it.

Paper: Du et al. 2022 (arXiv 2103.10360), section 2 and figure 2; the shapes, names and constants are those of THUDM/GLM's checkpoints.
Nothing here is FlatLM's: no cache, one forward pass over everything that is known, the whole mask written out.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

BASE = {
    "num_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_sequence_length": 64,
    "vocab_size": 128,
    "embedding_dropout_prob": 0.1,
    "attention_dropout_prob": 0.1,
    "output_dropout_prob": 0.1,
    "max_memory_length": 0,
    "checkpoint_activations": False,
    "checkpoint_num_layers": 1,
    "parallel_output": True,
    "relative_encoding": False,
    "block_position_encoding": True,
    "output_predict": True,
    "spell_length": None,
    "spell_func": "lstm",
    "attention_scale": 1.0,
}
"""The keys of FlagAI's config.json."""


@dataclass(frozen=True)
class Span:
    """A blank: where its mask stands in the context, and how many tokens are read for it (the start of the piece, and the answer)."""

    mask: int
    tokens: int


def position_rows(context: int, spans: Sequence[Span]) -> Tensor:
    """Both rows of positions [2, S]: the context counts itself and has block 0; a span repeats its mask's place and counts from 1."""
    first, second = list(range(context)), [0] * context
    for span in spans:
        first += [span.mask] * span.tokens
        second += range(1, span.tokens + 1)
    return torch.tensor([first, second])


def visible(length: int, sep: int) -> Tensor:
    """Who sees whom [S, S], 1 or 0: all see the first `sep`, beyond it each what is not after it."""
    mask = torch.tril(torch.ones(length, length))
    mask[:, :sep] = 1
    return mask


class GLMLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.LayerNorm(width, eps=1e-5)
        self.attention = nn.ModuleDict({"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)})
        self.post_attention_layernorm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = nn.ModuleDict({"dense_h_to_4h": nn.Linear(width, 4 * width), "dense_4h_to_h": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        head = width // self.heads
        merged = self.attention["query_key_value"](self.input_layernorm(x))
        q, k, v = (part.reshape(batch, length, self.heads, head).transpose(1, 2) for part in merged.chunk(3, -1))
        scores = q @ (k / math.sqrt(head)).transpose(-1, -2)
        scores = scores * mask + -65504.0 * (1 - mask)
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.attention["dense"](mixed)
        hidden = self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x))
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return x + self.mlp["dense_4h_to_h"](hidden)


class GLMReference(nn.Module):
    """`config`: FlagAI's keys. Logits [B, S, V] of tokens [B, S] at positions [B, 2, S], of which the first `sep` are the context."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        width, rows = config["hidden_size"], config["max_sequence_length"] + 1
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.transformer = nn.ModuleDict(
            {
                "position_embeddings": nn.Embedding(rows, width),
                "block_position_embeddings": nn.Embedding(rows, width),
                "layers": nn.ModuleList(GLMLayer(width, config["num_attention_heads"]) for _ in range(config["num_layers"])),
                "final_layernorm": nn.LayerNorm(width, eps=1e-5),
            }
        )

    def forward(self, tokens: Tensor, position_ids: Tensor, sep: int) -> Tensor:
        parts = self.transformer
        x = self.word_embeddings(tokens) + parts["position_embeddings"](position_ids[:, 0])
        x = x + parts["block_position_embeddings"](position_ids[:, 1])
        mask = visible(tokens.shape[1], sep)
        for layer in parts["layers"]:
            x = layer(x, mask)
        return parts["final_layernorm"](x) @ self.word_embeddings.weight.T

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def get_output_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    @torch.inference_mode()
    def read(self, context: Sequence[int], spans: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Logits [S, V] after each token of a context, then of (mask's place, tokens read) for each span in turn."""
        tokens = [*context, *(token for _, read in spans for token in read)]
        rows = position_rows(len(context), [Span(mask, len(read)) for mask, read in spans])
        return self(torch.tensor([tokens]), rows[None], len(context))[0]

    def fill(self, context: Sequence[int], masks: Sequence[int], *, sop: int, eop: int, most: int) -> list[list[int]]:
        """What is most likely for each blank, in turn: up to `most` tokens, or until the end of the piece, which nobody reads."""
        spans: list[tuple[int, list[int]]] = []
        for mask in masks:
            read, answer = [sop], list[int]()
            spans.append((mask, read))
            while len(answer) < most:
                token = int(self.read(context, spans)[-1].argmax())
                if token == eop:
                    break
                answer.append(token)
                read.append(token)
        return [read[1:] for _, read in spans]


def save_reference(model: GLMReference, directory: Path, *, form: str = "flagai") -> None:
    """As checkpoints lie: "flagai" (config.json of its keys, pytorch_model.bin), "native" (the state under 'module'), "transformers"."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = dict(model.config)
    match form:
        case "flagai":
            torch.save(state, directory / "pytorch_model.bin")
        case "native":
            torch.save({"module": state, "iteration": 3, "args": None}, directory / "pytorch_model.bin")
        case "transformers":
            config |= {
                "architectures": ["GLMForConditionalGeneration"],
                "model_type": "glm",
                "initializer_range": 0.02,
                "pool_token": "cls",
                "torch_dtype": "float32",
                "auto_map": {"AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration"},
            }
            save_file({f"glm.{name}": tensor.contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
