"""Models whose forward is their own, as authors outside the package write them: named calls while exported, torch otherwise."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.signatures import SignatureSpec
from flatlm.convert.traced import TracedSignature
from flatlm.layers import ops
from flatlm.layers.config import NormConfig
from flatlm.layers.linear import Embedding, Linear
from flatlm.layers.model import Decoder
from flatlm.layers.norm import Norm

DIM, VOCAB, TOKENS = 16, 24, 4


class Layer(nn.Module):
    """A feed-forward over norm(x) plus what is `kept` for the layer, where the mask allows; gives back what it read, to be kept."""

    def __init__(self, eps: float = 1e-5, width: int = 32, constant: float | None = None, wiring: str = "") -> None:
        """`wiring`: "swapped", or "kept", has the same operators as others, and other operands."""
        super().__init__()
        self.norm = Norm(NormConfig(eps=eps), DIM)
        self.up, self.down = Linear(DIM, width, bias=True), Linear(width, DIM)
        self.constant = None if constant is None else torch.full((DIM,), constant)
        self.wiring = wiring

    def forward(self, x: Tensor, kept: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        read = self.norm(x) + kept
        read = torch.where(mask, read - (kept if self.wiring == "kept" else x) * 0.1, torch.zeros_like(read))
        if self.constant is not None:
            read = read * self.constant
        left, right = self.up(read).chunk(2, -1)
        left = torch.tanh(left)
        difference = right - left if self.wiring == "swapped" else left - right
        hidden = torch.cat([left, difference], -1)
        return x + self.down(hidden), read


class Model(nn.Module):
    """Layers in a loop of the model's own. `skip`: each also reads what the layer two before it wrote."""

    def __init__(
        self, name: str, layers: list[Layer], *, skip: bool = False, tied: bool = False, times: int = 1, tap: int | None = None
    ) -> None:
        """`times`: all layers are run so often, one round after the other. `tap`: the only layer whose reading is given out."""
        super().__init__()
        self.skip, self.times, self.tap = skip, times, tap
        self.embedding, self.final, self.head = Embedding(VOCAB, DIM), Norm(NormConfig(bias=True), DIM), Linear(DIM, VOCAB)
        self.layers = nn.ModuleList(layers)
        ops.name_layers(self, name)
        if tied:
            self.head.weight, self.head.tied_to = self.embedding.weight, f"{name}.embedding"

    def forward(self, tokens: Tensor, mask: Tensor, **kept: Tensor) -> dict[str, Tensor]:
        x, out = self.embedding(tokens), {}
        allowed = (mask > 0)[..., None]
        seen = [x]
        for index, layer in enumerate([*self.layers] * self.times):
            given = x + seen[-3] * 0.5 if self.skip and len(seen) > 2 else x
            x, read = layer(given, kept[f"kept_{index}"], allowed)
            out |= {f"kept_{index}": read} if self.tap in (None, index) else {}
            seen.append(x)
        return out | {"logits": self.head(self.final(x))}


class TwoStacks(nn.Module):
    """One stack of layers after the other, with a weight between them, an input that nothing reads, and one that is given back."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.embedding, self.between = Embedding(VOCAB, DIM), Linear(DIM, DIM)
        self.lower, self.upper = nn.ModuleList(Layer() for _ in range(3)), nn.ModuleList(Layer(width=16) for _ in range(2))
        ops.name_layers(self, name)

    def forward(self, tokens: Tensor, unread: Tensor, passed: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens)
        mask = torch.ones(1, TOKENS, 1, dtype=torch.bool)
        for layer in self.lower:
            x, _ = layer(x, x * 0.5, mask)
        x = self.between(x)
        x[:, 0] = 0.25  # writes in place
        for layer in self.upper:
            x, _ = layer(x, x * 0.5, mask)
        return {"x": x, "passed": passed}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def signature_of(name: str, model: nn.Module) -> TracedSignature:
    """With inputs of noise, which are also good to compare results."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Tensor] = {"tokens": torch.arange(TOKENS, dtype=torch.int32)[None] * 5}
    if isinstance(model, TwoStacks):
        inputs |= {name: torch.randn(1, 3, generator=generator) for name in ("unread", "passed")}
        return TracedSignature(name, model, inputs, ["passed", "x"])
    inputs["mask"] = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    kept = [f"kept_{index}" for index in range(len(model.layers) * model.times)]
    inputs |= {name: torch.randn(1, TOKENS, DIM, generator=generator) for name in kept}
    return TracedSignature(name, model, inputs, [*(kept if model.tap is None else [kept[model.tap]]), "logits"])


def decoder_signature(model: Decoder, spec: SignatureSpec) -> TracedSignature:
    """A decoder of FlatLM's as if it were foreign: every layer by its whole name."""
    for index, block in enumerate(model.blocks):
        ops.name_layers(block, f"blocks.{index}")
    call = WholeDecoder(model, spec)
    inputs = call.sample_inputs()
    caches = [name for name in inputs if name.startswith("kv_cache")]
    return TracedSignature(spec.name, call, inputs, [*caches, *(["logits"] if spec.logits else [])])


def weights(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All parameters, by the names of the calls; a tied head's is its embedding's."""
    return {f"{prefix}.{name}": parameter.data for prefix, model in models.items() for name, parameter in model.named_parameters()}
