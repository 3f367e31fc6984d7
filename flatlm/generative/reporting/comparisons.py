"""What `flatlm compare --save` found: files and peers side by side, and the ratios between them with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from flatlm.generative.reporting.collect import at, named
from flatlm.generative.reporting.document import MISSING, Block, Cell, Kind, Table
from flatlm.generative.reporting.figures import cell, drawable, figures, number, text_cell
from flatlm.generative.reporting.plots import Bar, bars_plot

MEASURES = {
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "load_s": "load, s",
    "peak_rss_bytes": "peak memory, MB",
}


def blocks(comparisons: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Of each comparison its subjects and its ratios, as a plot and as tables."""
    out: list[Block] = []
    for index, comparison in enumerate(comparisons, 1):
        which = f" ({index} of {len(comparisons)})" if len(comparisons) > 1 else ""
        ratios = [(ratio, value) for ratio in _dictionaries(comparison, "ratios") if (value := number(ratio.get("ratio"))) is not None]
        drawn = [(ratio, value) for ratio, value in ratios if all(drawable(ratio.get(key, value)) for key in ("ratio", "low", "high"))]
        if ratios:
            out += [_plot(drawn, f"ratios{index if len(comparisons) > 1 else ''}", which)] if drawn else []
            out.append(Table(f"Ratios{which}", ("subject", "to", "measure", "ratio", "interval"), tuple(map(_ratio_row, ratios))))
        subjects = _dictionaries(comparison, "subjects")
        if subjects:
            rows = tuple(
                (
                    text_cell(named(subject, "name")),
                    text_cell(named(subject, "file"), Kind.CODE),
                    *(cell(_median(subject.get(key)), factor=1e-6 if key == "peak_rss_bytes" else 1) for key in MEASURES),
                )
                for subject in subjects
            )
            out.append(Table(f"Measured by turns in one run{which}", ("subject", "file", *MEASURES.values()), rows))
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
    caption = "A dot is the ratio, the bar its interval of confidence; the line marks equal ones. In speeds, more is better."
    shown = [(f"ratio of {measure.split(',')[0]}", bars) for measure, bars in panels.items()]
    return bars_plot(name, title, shown, caption=caption, reference=1.0)


def _ratio_row(entry: tuple[Mapping[str, Any], float]) -> tuple[Cell, ...]:
    ratio, value = entry
    low, high = number(ratio.get("low")), number(ratio.get("high"))
    interval = MISSING if low is None or high is None else Cell(f"{figures(low)} to {figures(high)}", Kind.NUMBER)
    return text_cell(named(ratio, "subject")), text_cell(named(ratio, "to")), Cell(_measure(ratio)), cell(value), interval


def _measure(ratio: Mapping[str, Any]) -> str:
    name = named(ratio, "measure") or "?"
    return MEASURES.get(name, name).replace(", tokens/s", "").replace(", s", "").replace(", MB", "")


def _median(value: object) -> object:
    """A measure with its spread, or a plain number."""
    return at(value, "median") if isinstance(value, Mapping) else value


def _dictionaries(comparison: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    values = comparison.get(key)
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list | tuple) else []
