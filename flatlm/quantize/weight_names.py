"""The names that a recipe's patterns see: of a plain module its parameters' own, of a wrapper those of the model in it."""

from torch import Tensor, nn

PREFIX_ATTRIBUTE = "weights_prefix"
"""A module's class says with it under which path the model lies whose names count, such as "model."."""


def weight_names(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by the name that counts. One that several layers share has the first of its names."""
    prefix = getattr(module, PREFIX_ATTRIBUTE, "")
    found = [*module.named_parameters(), *module.named_buffers()]
    return {name.removeprefix(prefix): tensor for name, tensor in found}
