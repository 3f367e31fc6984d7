"""Numbers and names as a person reads them. What comes from a file or a folder is not trusted to be of any type."""

import math

from flatlm.generative.reporting.document import MISSING, NOT_KNOWN, Cell, Kind

LONGEST_LABEL = 28


def number(value: object) -> float | None:
    """None for anything that is not one."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def drawable(value: object) -> bool:
    """Is it a number that a plot's axis has room for?"""
    found = number(value)
    return found is not None and abs(found) < 1e15


def figures(value: float, digits: int = 3) -> str:
    """At least so many figures, whole numbers in groups of three, powers of ten only where it is tiny."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent >= digits - 1:
        return f"{value:,.0f}"
    if exponent < -4:
        mantissa, power = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.{digits - 1 - exponent}f}"


def cell(value: object, *, digits: int = 3, factor: float = 1.0) -> Cell:
    """A number's, times `factor`, whole ones in full; not measured where it is none."""
    found = number(value)
    if found is None:
        return MISSING
    text = f"{value:,}" if isinstance(value, int) and factor == 1 else figures(found * factor, digits)
    return Cell(text, Kind.NUMBER)


def percent(value: object) -> Cell:
    """Of a share of 1, with two decimals."""
    found = number(value)
    return MISSING if found is None else Cell(f"{found * 100:.2f} %", Kind.NUMBER)


def text_cell(value: object, kind: Kind = Kind.TEXT) -> Cell:
    """Of anything that is said in words; not known where there is nothing."""
    return NOT_KNOWN if value is None or value == "" else Cell(printable(value), kind)


def printable(value: object) -> str:
    """As text, without characters that have no picture, or turn the text around: each becomes U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(value))


def shortened(text: str, length: int = LONGEST_LABEL) -> str:
    """Its begin and its end, where it is longer."""
    keep = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - keep]}…{text[-keep:]}"


def count(value: float) -> str:
    """Parameters: 1.31 M, 7.2 B."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f}"
