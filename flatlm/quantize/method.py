"""How integers are chosen for a weight, beyond rounding each number to the nearest: a record that is part of a recipe.

Importing this loads neither torch nor numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from flatlm.errors import RecipeError
from flatlm.quantize.schemes import Scheme

Rounding = Literal["nearest", "scale_search", "half_quadratic", "gptq"]

ROUNDINGS: Mapping[Rounding, str] = MappingProxyType(
    {
        "nearest": "every weight to the nearest integer, the scale from the largest weight",
        "scale_search": "the scale of the least squared error",
        "half_quadratic": "scale and integers by turns, large errors weighing less (HQQ)",
        "gptq": "integers that keep what the layer gives on the calibration text (GPTQ), then refined one by one",
    }
)


@dataclass(frozen=True, slots=True)
class Method:
    """`rounding` chooses integers and scales; the others change the weights first, without changing what the model computes.

    `rotate` turns the residual stream by a random Hadamard matrix (QuaRot, SpinQuant: Ashkboos et al. 2024, Liu et al. 2024). `migrate`
    moves scales of input channels into the layer before, as the calibration text's activations ask for (AWQ, Lin et al. 2023). `smooth`
    is how much of the activations' range is moved into the weights, from 0 to 1 (SmoothQuant, Xiao et al. 2022); None: nothing is moved.
    """

    rounding: Rounding = "nearest"
    rotate: bool = False
    migrate: bool = False
    smooth: float | None = None

    def __post_init__(self) -> None:
        if self.rounding not in get_args(Rounding):
            raise RecipeError(f"recipe method: unknown rounding {self.rounding!r} (allowed: {', '.join(ROUNDINGS)})")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise RecipeError(f"recipe method: 'smooth' is from 0 to 1, not {self.smooth!r}")
        if self.smooth is not None and self.migrate:
            raise RecipeError("recipe method: 'smooth' and 'migrate' both move scales of the same channels; choose one")

    @property
    def needs_text(self) -> bool:
        """Whether it looks at activations, so that calibration text is needed."""
        return self.calibrates or self.migrate or self.smooth is not None

    @property
    def calibrates(self) -> bool:
        """Whether it solves for integers that keep what a layer gives, so that bounds hold and warnings do not that are for rounding."""
        return self.rounding == "gptq"

    def searches(self, scheme: Scheme) -> bool:
        """Whether it chooses the integers of weights of this scheme."""
        return self.rounding != "nearest" and scheme.four_bits


PLAIN = Method()
