import subprocess
import sys

import pytest

from flatlm.errors import RecipeError
from flatlm.quantize.schemes import SCHEMES, Scheme, get_scheme


def test_importing_recipes_loads_neither_torch_nor_numpy() -> None:
    code = "import flatlm.quantize.recipes, sys; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scheme_is_filed_under_its_own_name() -> None:
    assert all(name == scheme.name for name, scheme in SCHEMES.items())


def test_table_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        SCHEMES["x"] = SCHEMES["float32"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        SCHEMES["float32"].name = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "nbytes", "scales", "scales_nbytes"),
    [
        ("float32", 4096, None, 0),
        ("float16", 2048, None, 0),
        ("dynamic_int8", 1024, (4,), 16),
        ("weight_only_int8", 1024, (4,), 16),
        ("dynamic_int4_block32", 512, (4, 8), 64),
        ("dynamic_int4_block128", 512, (4, 2), 16),
        ("dynamic_int4_channel", 512, (4,), 16),
    ],
)
def test_sizes_of_a_4_by_256_weight(name: str, nbytes: int, scales: tuple[int, ...] | None, scales_nbytes: int) -> None:
    scheme = SCHEMES[name]
    assert (scheme.nbytes([4, 256]), scheme.scales_shape([4, 256]), scheme.scales_nbytes([4, 256])) == (nbytes, scales, scales_nbytes)
    assert scheme.quantized == (scales is not None)


@pytest.mark.parametrize("name", ["float32", "float16"])
@pytest.mark.parametrize("shape", [[5], [3, 5], [2, 3, 5]])
def test_float_schemes_take_any_shape(name: str, shape: list[int]) -> None:
    SCHEMES[name].check("w", shape)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        (
            "dynamic_int4_block32",
            [8, 48],
            r"'blocks\.0\.x\.weight' of shape \[8, 48\]: 48 columns are not a multiple of 32; use dynamic_int8",
        ),
        ("dynamic_int4_block128", [8, 96], "not a multiple of 128; use dynamic_int4_block32 or dynamic_int8"),
        ("dynamic_int4_channel", [8, 33], "33 columns are odd"),
        ("dynamic_int8", [8], "needs a matrix"),
        ("dynamic_int8", [2, 8, 8], "needs a matrix"),
        ("dynamic_int8", [0, 8], "no empty one"),
        ("float32", [], "at least one dimension"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, shape: list[int], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        SCHEMES[name].check("blocks.0.x.weight", shape)


def test_odd_columns_suit_int8() -> None:
    SCHEMES["dynamic_int8"].check("w", [3, 33])


def test_float_scheme_has_no_levels() -> None:
    with pytest.raises(RecipeError, match="stores floats"):
        _ = SCHEMES["float16"].levels


def test_unknown_scheme_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown scheme 'dynamic_int3'; did you mean 'dynamic_int8'\? \(allowed: float32, .*channel\)"):
        get_scheme("dynamic_int3")
    assert get_scheme("float32") == Scheme("float32", "float32")
