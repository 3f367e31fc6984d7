"""Benchmark records as text for other programs and documents: CSV and Markdown, a line for each record and depth."""

import csv
import io
from collections.abc import Iterator, Sequence

from flatlm.generative.benchmarking.record import BenchmarkRecord, DepthSpeeds, Measure


def as_csv(records: Sequence[BenchmarkRecord]) -> str:
    """With a header; a measure's median, minimum and maximum are three columns; unknown is empty. Seconds, bytes, joules."""
    text = io.StringIO()
    rows = [_cells(record, speeds) for record, speeds in _lines(records)]
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(records: Sequence[BenchmarkRecord]) -> str:
    """A table for a README; medians, in brackets the spread."""
    heads = ["file", "target", "processor", "threads", "depth", "prefill, tokens/s", "decode, tokens/s"]
    heads += ["first token, s", "load, s", "peak memory, MB"]
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | --- " + "| ---: " * 7 + "|"]
    for record, speeds in _lines(records):
        peak = "" if record.peak_rss_bytes is None else f"{record.peak_rss_bytes / 1e6:,.1f}"
        cells = [record.file, record.target, record.machine.cpu, record.threads_and_cache, speeds.depth]
        cells += [_spread(speeds.prefill_tokens_per_second), _spread(speeds.decode_tokens_per_second)]
        cells += [_spread(record.time_to_first_token_s), _spread(record.load_s), peak]
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    notes = [f"{record.file} on {record.target}: {'; '.join(record.noise)}." for record in records if record.noise]
    return "\n".join([*rows, *(["", "Not measured on a quiet machine:", "", *(f"- {note}" for note in notes)] if notes else [])]) + "\n"


def rounded(value: float) -> str:
    """Three figures, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _lines(records: Sequence[BenchmarkRecord]) -> Iterator[tuple[BenchmarkRecord, DepthSpeeds]]:
    return ((record, speeds) for record in records for speeds in record.depths)


def _spread(measure: Measure | None) -> str:
    if measure is None:
        return ""
    return rounded(measure.median) + (f" ({rounded(measure.minimum)} to {rounded(measure.maximum)})" if measure.runs > 1 else "")


def _cells(record: BenchmarkRecord, speeds: DepthSpeeds) -> dict[str, object]:
    cells: dict[str, object] = {
        "file": record.file,
        "file_bytes": record.file_bytes,
        "target": record.target,
        "cpu": record.machine.cpu,
        "architecture": record.machine.architecture,
        "cores": record.machine.cores,
        "memory_bytes": record.machine.memory_bytes,
        "system": record.machine.system,
        "runtime": record.machine.runtime,
        "threads": record.threads,
        "weight_cache": record.weight_cache,
        "prefill_tokens": record.prefill_tokens,
        "decode_tokens": record.decode_tokens,
        "depth": speeds.depth,
    }
    for name, measure in (
        ("prefill_tokens_per_second", speeds.prefill_tokens_per_second),
        ("decode_tokens_per_second", speeds.decode_tokens_per_second),
        ("time_to_first_token_s", record.time_to_first_token_s),
        ("load_s", record.load_s),
        ("energy_j_per_token", record.energy_j_per_token),
    ):
        median, least, most = (None, None, None) if measure is None else (measure.median, measure.minimum, measure.maximum)
        cells |= {name: median, f"{name}_min": least, f"{name}_max": most}
    return cells | {"peak_rss_bytes": record.peak_rss_bytes, "noise": "; ".join(record.noise)}
