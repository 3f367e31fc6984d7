"""A model that no family is: every operator in an unusual place. And what it computes, in plain torch, from the operators' description."""

from typing import Any

import torch
from torch import Tensor

from flatlm import ComputeGraph

CONFIG = {"layers": 3, "rope_theta": 100.0, "max_position_embeddings": 32, "tie_word_embeddings": True}
V, D, N, K, H, F = 48, 32, 4, 2, 8, 24
PAIRS = 3
"""Of the 4 pairs of a head, those that turn."""
SCALE = 0.3


class Odd(ComputeGraph):
    """Learned positions, which every layer reads, and what only the end reads again; partial rotation; norms of heads; residuals that are
    scaled; a gate written the other way round; a plain branch of the same norm, with biases; a tied head with a bias; and more for nothing.
    """

    ignored_tensors = ("*.inv_freq",)

    def build(self) -> None:
        weight, data, config = self.weight, self.data, self.config
        config = self.config = {**config, "max_positions": config["max_position_embeddings"]}
        self.Embedding(data["inputIds"], weight["wte"], data["x"])
        self.Embedding(data["positionIds"], weight["wpe"], data["positions"])
        self.AddTo(data["x"], data["positions"], 0.5)
        self.Silu(data["x"], data["first"])
        for i in range(config["layers"]):
            own = weight["h."][i]
            self.RMSNorm(data["x"], own[".norm"], "1e-6", data["read"])
            self.Linear(data["read"], own[".unused"], None, data["unused"])
            self.Linear(data["read"], own[".v.weight"], own[".v.bias"], data["v"])
            self.Linear(data["read"], own[".k.weight"], own[".k.bias"], data["k"])
            self.Linear(data["read"], own[".q.weight"], own[".q.bias"], data["q"])
            self.Linear(data["read"], own[".side.weight"], own[".side.bias"], data["side"])
            for name in "qkv":
                self.ExpandHead(data[name], H)
            self.RMSNorm(data["q"], own[".q_norm"], 1e-5, data["q"])
            for name in "qk":
                self.LlamaRotatePosition2D(data[name], data["positionIds"], data["sin"], data["cos"], PAIRS)
            past = data["pastKey."][i], data["pastValue."][i]
            step = data["attentionMask"], data["mixed"], data["seqLens"]
            self.FusedAttention(data["q"], *past, data["k"], data["v"], data["x"], *step, SCALE, 0, 64)
            self.Linear(data["mixed"], own[".o"], None, data["mixed"])
            self.Silu(data["side"], data["side"])
            self.AddTo(data["mixed"], data["side"], -2)
            self.AddTo(data["x"], data["mixed"], 0.25)
            self.Linear(data["x"], own[".up"], None, data["up"])
            self.Linear(data["x"], own[".gate"], None, data["gate"])
            self.Silu(data["gate"], data["act"])
            self.MulTo(data["up"], data["act"])
            self.Linear(data["up"], own[".down"], None, data["down"])
            self.MulTo(data["down"], data["down"])
            self.AddTo(data["x"], data["down"])
            self.AddTo(data["x"], data["positions"], 0.1)
        self.RMSNorm(data["x"], weight["norm"], 1e-5, data["x"])
        self.AddTo(data["x"], data["first"])
        self.SplitLastTokenStates(data["x"], data["seqLens"], data["last"])
        self.Linear(data["last"], weight["lm_head"], weight["lm_head.bias"], data["logits"])


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the checkpoint's tensors."""
    found: dict[str, tuple[int, ...]] = {"wte": (V, D), "wpe": (32, D), "norm": (D,), "lm_head.bias": (V,), "rotary.inv_freq": (4,)}
    for i in range(CONFIG["layers"]):
        own = {"norm": (D,), "q_norm": (H,), "o": (D, N * H), "unused": (5, D), "up": (F, D), "gate": (F, D), "down": (D, F)}
        for name, rows in (("q", N * H), ("k", K * H), ("v", K * H), ("side", D)):
            own |= {f"{name}.weight": (rows, D), f"{name}.bias": (rows,)}
        found |= {f"h.{i}.{name}": shape for name, shape in own.items()}
    return found


def random_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes().items()}


def reference(tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits [T, V] for ids [T]."""
    x = tensors["wte"][ids] + 0.5 * tensors["wpe"][: len(ids)]
    first = x * torch.sigmoid(x)
    for i in range(CONFIG["layers"]):
        own = {name.removeprefix(f"h.{i}."): value for name, value in tensors.items() if name.startswith(f"h.{i}.")}
        read = _norm(x, own["norm"], 1e-6)
        q, k, v = (read @ own[f"{name}.weight"].T + own[f"{name}.bias"] for name in "qkv")
        q, k, v = (part.reshape(len(ids), -1, H).transpose(0, 1) for part in (q, k, v))  # [heads, T, H]
        q, k = _turned(_norm(q, own["q_norm"], 1e-5)), _turned(k)
        k, v = k.repeat_interleave(N // K, 0), v.repeat_interleave(N // K, 0)
        scores = (q @ k.transpose(1, 2)) * SCALE
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), N * H) @ own["o"].T
        side = read @ own["side.weight"].T + own["side.bias"]
        mixed = mixed - 2 * (side * torch.sigmoid(side))
        x = x + 0.25 * mixed
        gate = x @ own["gate"].T
        down = ((x @ own["up"].T) * (gate * torch.sigmoid(gate))) @ own["down"].T
        x = x + down * down + 0.1 * tensors["wpe"][: len(ids)]
    return (_norm(x, tensors["norm"], 1e-5) + first) @ tensors["wte"].T + tensors["lm_head.bias"]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def _turned(x: Tensor) -> Tensor:
    """Heads [heads, T, H] with pairs (i, i + H/2) turned by position * theta^(-2i/H), for i < PAIRS."""
    out = x.clone()
    for position in range(x.shape[1]):
        for pair in range(PAIRS):
            angle = torch.tensor(position * CONFIG["rope_theta"] ** (-2 * pair / H))
            a, b = x[:, position, pair], x[:, position, pair + H // 2]
            out[:, position, pair] = a * angle.cos() - b * angle.sin()
            out[:, position, pair + H // 2] = a * angle.sin() + b * angle.cos()
    return out


def parameters(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's parameters, from the tensors that its slots name."""
    return {slot.name: torch.cat([tensors[part.tensor] for part in slot.parts]) for slot in model.config.slots}
