"""What `flatlm compare --save` found: files and peers side by side, and the ratios between them with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from flatlm.generative.reporting.collect import at, named
from flatlm.generative.reporting.document import MISSING, NOT_KNOWN, Block, Cell, Kind, Paragraph, Table
from flatlm.generative.reporting.figures import cell, drawable, figures, number, printable, text_cell
from flatlm.generative.reporting.plots import Bar, bars_plot

MEASURES = {
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "time_to_first_token_s": "first token, s",
    "load_s": "load, s",
    "peak_rss_bytes": "peak memory, MB",
}


RATIO_HEADERS = ("subject", "to", "measure", "ratio", "interval", "difference")


def blocks(comparisons: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Of each comparison its subjects and its ratios, as a plot and as tables."""
    out: list[Block] = []
    for index, comparison in enumerate(comparisons, 1):
        which = f" ({index} of {len(comparisons)})" if len(comparisons) > 1 else ""
        ratios = [(ratio, value) for ratio in _dictionaries(comparison, "ratios") if (value := number(ratio.get("ratio"))) is not None]
        drawn = [(ratio, value) for ratio, value in ratios if all(drawable(ratio.get(key, value)) for key in ("ratio", "low", "high"))]
        if ratios:
            out += [_plot(drawn, f"ratios{index if len(comparisons) > 1 else ''}", which)] if drawn else []
            out.append(Table(f"Ratios{which}", RATIO_HEADERS, tuple(map(_ratio_row, ratios))))
        subjects = _dictionaries(comparison, "subjects")
        if subjects:
            rows = tuple(
                (
                    text_cell(named(subject, "name")),
                    text_cell(named(subject, "file"), Kind.CODE),
                    text_cell(named(subject, "runtime")),
                    *(cell(_median(subject.get(key)), factor=1e-6 if key == "peak_rss_bytes" else 1) for key in MEASURES),
                )
                for subject in subjects
            )
            out.append(Table(f"Measured by turns in one run{which}", ("subject", "file", "runtime", *MEASURES.values()), rows))
        notes = comparison.get("notes")
        out += [Paragraph(printable(note)) for note in (notes if isinstance(notes, list | tuple) else [])]
    return out


def _plot(ratios: Sequence[tuple[Mapping[str, Any], float]], name: str, which: str) -> Block:
    panels: dict[str, list[Bar]] = {}
    subjects = {named(ratio, "subject") or "?" for ratio, _ in ratios}
    title = f"{subjects.pop()} against others{which}" if len(subjects) == 1 else f"One against another{which}"
    alone = not subjects
    for ratio, value in ratios:
        low, high = number(ratio.get("low")), number(ratio.get("high"))
        to = named(ratio, "to") or "?"
        label = f"against {to}" if alone else f"{named(ratio, 'subject') or '?'} / {to}"
        panels.setdefault(_measure(ratio), []).append(Bar(label, value, value if low is None else low, value if high is None else high))
    caption = "The bar is the interval of confidence, the line marks equal ones. In speeds, more is better; in times, less."
    shown = [(f"ratio of {measure}", bars) for measure, bars in panels.items()]
    return bars_plot(name, title, shown, caption=caption, reference=1.0)


def _ratio_row(entry: tuple[Mapping[str, Any], float]) -> tuple[Cell, ...]:
    ratio, value = entry
    low, high = number(ratio.get("low")), number(ratio.get("high"))
    interval = MISSING if low is None or high is None else Cell(f"{figures(low)} to {figures(high)}", Kind.NUMBER)
    names = (text_cell(named(ratio, key)) for key in ("subject", "to"))
    told = ratio.get("distinguishable")
    difference = NOT_KNOWN if told is None else Cell("beyond noise" if told else "within noise")
    return *names, Cell(_measure(ratio)), cell(value), interval, difference


def _measure(ratio: Mapping[str, Any]) -> str:
    name = named(ratio, "measure") or "?"
    depth = number(ratio.get("depth"))
    return MEASURES.get(name, name).split(",")[0] + (f" at depth {figures(depth, 1)}" if depth else "")


def _median(value: object) -> object:
    """A measure with its spread, or a plain number."""
    return at(value, "median") if isinstance(value, Mapping) else value


def _dictionaries(comparison: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    values = comparison.get(key)
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list | tuple) else []
