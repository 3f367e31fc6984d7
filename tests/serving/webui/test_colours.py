"""The contrast of the page's colours, by WCAG 2's formula: AA wants 4.5 for text, 3 for the edges of controls."""

import re

import pytest

from flatlm.serving.routes.page import FOLDER

DECLARED = re.compile(r"--([\w-]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\);")
TEXTS = [
    *((ink, ground) for ink in ("ink", "muted", "accent", "bad", "warn", "good") for ground in ("paper", "panel")),
    *((ink, "raised") for ink in ("ink", "accent", "muted")),
    ("on-accent", "accent"),
    ("ink", "first"),
    ("ink", "differs"),
]
EDGES = [*((edge, ground) for edge in ("edge", "accent") for ground in ("paper", "panel")), ("warn", "first")]


def colours() -> list[dict[str, str]]:
    """Light, dark."""
    found = DECLARED.findall((FOLDER / "style.css").read_text("utf-8"))
    return [{name: values[which] for name, *values in found} for which in (0, 1)]


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula():
    assert contrast("000000", "ffffff") == pytest.approx(21) and contrast("777777", "ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_colours_can_be_told_apart(theme):
    values = colours()[theme]
    poor = {pair: contrast(*(values[name] for name in pair)) for pair in TEXTS if contrast(*(values[name] for name in pair)) < 4.5}
    assert poor == {}
    faint = {pair: contrast(*(values[name] for name in pair)) for pair in EDGES if contrast(*(values[name] for name in pair)) < 3}
    assert faint == {}


def test_every_colour_is_of_the_theme():
    """So that what is computed above is what is seen."""
    for name in ("style.css", "views.css"):
        text = DECLARED.sub("", (FOLDER / name).read_text("utf-8"))
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?![^{]*\{)", text) == [], name
