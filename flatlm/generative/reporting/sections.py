"""What a report says of a folder's findings, section by section."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flatlm import __version__
from flatlm.generative.benchmarking.record import BenchmarkRecord, Measure
from flatlm.generative.reporting import comparisons, missing, model_card
from flatlm.generative.reporting.collect import Findings, Subject, at, named
from flatlm.generative.reporting.document import MISSING, Block, Cell, Document, Folded, Kind, Paragraph, Section, Table
from flatlm.generative.reporting.figures import cell, drawable, figures, number, percent, printable, text_cell
from flatlm.generative.reporting.plots import LEAST_KL, Bar, Line, Point, bars_plot, lines_plot, quality_plot, tick

OPEN_UP_TO = 2
"""Files whose details are shown opened."""
ROWS_SHOWN = 30
"""Of speeds; more are folded away."""


def build(findings: Findings) -> Document:
    """All sections; the ones that nothing was found for say so under "Not measured"."""
    subjects = findings.subjects
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("Summary", "summary", _summary(subjects)),
        ("Quality against size", "quality", _quality(subjects)),
        ("Distance from the checkpoint", "distance", _distance(subjects)),
        ("Tasks", "tasks", _tasks(subjects)),
        ("Speed", "speed", _speed(subjects)),
        ("Side by side", "comparisons", comparisons.blocks(findings.comparisons)),
        ("Error of each layer", "layers", _layers(subjects)),
        ("Verification", "verification", _verification(subjects)),
        ("The files", "files", [model_card.folded(subject, shown=len(subjects) <= OPEN_UP_TO) for subject in subjects]),
        ("Machines and noise", "machines", _machines(subjects, findings.comparisons)),
        ("Not measured", "missing", missing.blocks(findings)),
    ]
    families = Counter(model_card.model_name(subject) for subject in subjects)
    subtitle = f"{len(subjects)} exported {'file' if len(subjects) == 1 else 'files'} in {printable(findings.folder.resolve().name)}"
    subtitle += f": {', '.join(families)}" if 0 < len(families) <= 4 else ""
    shown = tuple(Section(title, anchor, tuple(blocks)) for title, anchor, blocks in sections if blocks)
    return Document("FlatLM report", f"{subtitle}. Made by flatlm {__version__}.", shown)


def _summary(subjects: Sequence[Subject]) -> list[Block]:
    if not subjects:
        return []
    target = _main_target(subjects)
    records = [next((r for r in s.benchmarks if r.target == target and r.smallest_depth == 0), None) for s in subjects]
    columns: dict[str, list[Cell]] = {
        "#": [Cell(str(s.number), Kind.NUMBER) for s in subjects],
        "file": [Cell(s.name, Kind.CODE, s.anchor) for s in subjects],
        "model": [text_cell(model_card.model_name(s)) for s in subjects],
        "recipe": [text_cell(s.recipe) for s in subjects],
        "MB": [cell(s.bytes, factor=1e-6) for s in subjects],
        "perplexity": [cell(s.measured("perplexity"), digits=4) for s in subjects],
        "bits per byte": [cell(s.measured("bits_per_byte"), digits=4) for s in subjects],
        "KL, nats": [cell(s.measured("mean_kl")) for s in subjects],
        "top-1": [percent(s.measured("top1_agreement")) for s in subjects],
        "prefill, tokens/s": [_median(r, "prefill_tokens_per_second") for r in records],
        "decode, tokens/s": [_median(r, "decode_tokens_per_second") for r in records],
        "first token, ms": [_median(r, "time_to_first_token_s", 1e3) for r in records],
        "peak memory, MB": [cell(r.peak_rss_bytes if r else None, factor=1e-6) for r in records],
    }
    blocks = _table("All files", tuple(columns), zip(*columns.values(), strict=True))
    if any(records):
        others = len({record.target for s in subjects for record in s.benchmarks}) > 1
        text = f"Speeds are medians on {printable(target)}, with nothing in the context before the prompt"
        blocks.append(Paragraph(f"{text}; those on other targets are below." if others else f"{text}."))
    return blocks


def _main_target(subjects: Sequence[Subject]) -> str | None:
    """The one that most files were measured on from an empty context, the first of equals."""
    found = Counter(target for s in subjects for target in dict.fromkeys(r.target for r in s.benchmarks if r.smallest_depth == 0))
    return max(found, key=lambda target: found[target], default=None)


def _quality(subjects: Sequence[Subject]) -> list[Block]:
    kl = _points(subjects, "mean_kl")
    blocks: list[Block] = []
    if len(kl) > 1:
        blocks.append(
            quality_plot(
                "pareto", "KL from the checkpoint against size", kl, label="KL, nats a token", log=any(point.y > 0 for point in kl)
            )
        )
    perplexity = _points(subjects, "bits_per_byte") or _points(subjects, "perplexity")
    if len(perplexity) > 1:
        name = "bits per byte" if _points(subjects, "bits_per_byte") else "perplexity"
        blocks.append(quality_plot("perplexity", f"{name.capitalize()} against size", perplexity, label=name, log=False))
    return blocks


def _points(subjects: Sequence[Subject], measure: str) -> list[Point]:
    found = []
    for s in subjects:
        value, size = s.measured(measure), s.bytes
        if value is not None and size is not None and drawable(value) and drawable(size):
            found.append(Point(s.number, s.label, named(s.manifest, "checkpoint") or "", size / 1e6, value))
    return found


def _distance(subjects: Sequence[Subject]) -> list[Block]:
    rows = []
    for s in (s for s in subjects if s.measured("mean_kl") is not None):
        ratio, error = s.measured("perplexity_ratio"), s.measured("perplexity_ratio_standard_error")
        spread = "" if error is None else f" ± {figures(error, 2)}"
        greedy = at(s.evaluation, "greedy")
        prompts, equal = number(at(greedy, "prompts")), number(at(greedy, "equal_to_the_end"))
        rows.append(
            (
                _who(s),
                text_cell(named(s.evaluation, "against")),
                cell(s.evaluation.get("tokens")),
                cell(s.evaluation.get("context")),
                *(cell(s.measured(name)) for name in ("mean_kl", "median_kl", "p99_kl", "max_kl")),
                *(percent(s.measured(name)) for name in ("top1_agreement", "top5_agreement")),
                MISSING if ratio is None else Cell(f"{ratio:.4f}{spread}", Kind.NUMBER),
                MISSING if prompts is None or equal is None else Cell(f"{equal:.0f} of {prompts:.0f}", Kind.NUMBER),
                cell(at(greedy, "median_first_divergence")),
            )
        )
    if not rows:
        return []
    headers: tuple[str, ...] = (
        "file",
        "against",
        "tokens",
        "context",
        "mean KL",
        "median KL",
        "99th percentile",
        "largest KL",
        "top-1",
        "top-5",
    )
    headers += ("perplexity ratio", "greedy texts equal", "tokens until greedy texts part")
    note = (
        "KL in nats, of the file's next-token distribution from the reference's. The ratio is the file's perplexity over the reference's."
    )
    return [*_table("Distance from the checkpoint, on held-out text", headers, rows), Paragraph(note)]


def _tasks(subjects: Sequence[Subject]) -> list[Block]:
    rows = []
    for s in subjects:
        tasks = at(s.evaluation, "tasks")
        for task, metrics in (tasks if isinstance(tasks, Mapping) else {}).items():
            for metric, value in (metrics if isinstance(metrics, Mapping) else {}).items():
                if number(value) is None or str(metric).endswith("_stderr"):
                    continue
                error = number(metrics.get(f"{metric}_stderr"))
                shown = figures(float(value), 4) + ("" if error is None else f" ± {figures(error, 2)}")
                rows.append((_who(s), text_cell(task), text_cell(metric), Cell(shown, Kind.NUMBER)))
    return [Table("Scores, with their standard error", ("file", "task", "metric", "score"), tuple(rows))] if rows else []


def _speed(subjects: Sequence[Subject]) -> list[Block]:
    records = [(s, record) for s in subjects for record in s.benchmarks]
    if not records:
        return []
    blocks: list[Block] = []
    targets = list(dict.fromkeys(record.target for _, record in records))
    for index, target in enumerate(targets, 1):
        name = f"speed{index if len(targets) > 1 else ''}"
        blocks += _speed_plot(name, printable(target), [(s, record) for s, record in records if record.target == target])
    speeds, others = [], []
    for s, record in records:
        who = (_who(s), text_cell(record.target), _threads(record))
        for depth in record.depths:
            measures = depth.prefill_tokens_per_second, depth.decode_tokens_per_second
            speeds.append((*who, cell(depth.depth), *map(_spread, measures)))
        measures = record.time_to_first_token_s, record.load_s
        memory = cell(record.peak_rss_bytes, factor=1e-6)
        others.append((*who, *(_spread(measure, 1e3) for measure in measures), memory, _spread(record.energy_j_per_token, 1e3)))
    headers: tuple[str, ...] = ("file", "target", "threads", "depth", "prefill, tokens/s", "decode, tokens/s")
    figured = _table("Median, and least to most over the runs", headers, speeds)
    headers = ("file", "target", "threads", "first token, ms", "load, ms", "peak memory, MB", "energy, mJ a token")
    start = _table("Beginning, memory, energy: median, and least to most over the runs", headers, others)
    return [*blocks, *start, Folded("Speeds in figures", "speeds", tuple(figured), len(speeds) <= ROWS_SHOWN)]


def _speed_plot(name: str, target: str, records: Sequence[tuple[Subject, BenchmarkRecord]]) -> list[Block]:
    """Of one target: lines over the depths, or bars where there is but one."""
    measures = [(f"{name}, tokens/s", f"{name}_tokens_per_second") for name in ("decode", "prefill")]
    twice = max(Counter(s.number for s, _ in records).values()) > 1
    labels = [
        s.label + (f", {printable(record.threads)} threads" if twice else "") + ("" if record.weight_cache else ", no weight cache")
        for s, record in records
    ]
    if any(len(record.depths) > 1 for _, record in records):
        panels = [(label, _lines(records, labels, measure)) for label, measure in measures]
        caption = "Medians, with their range over the runs. Depth: tokens held before the prompt. Numbers are the summary's."
        title = f"Speed against context depth on {target}"
        depth = "depth of the context, tokens"
        return [lines_plot(name, title, panels, xlabel=depth, caption=caption)] if any(lines for _, lines in panels) else []
    bars = [(label, found) for label, measure in measures if (found := _bars(records, labels, measure))]
    return [bars_plot(name, f"Speed on {target}", bars, caption="Medians, and the range over the runs as a bar.")] if bars else []


def _lines(records: Sequence[tuple[Subject, BenchmarkRecord]], labels: Sequence[str], name: str) -> list[Line]:
    found = []
    for (s, record), label in zip(records, labels, strict=True):
        known = [(d.depth, m) for d in sorted(record.depths, key=lambda d: d.depth) if (m := _whole(getattr(d, name))) is not None]
        if known:
            points = tuple((float(depth), measure.median) for depth, measure in known)
            found.append(Line(s.number, label, points, tuple((measure.minimum, measure.maximum) for _, measure in known)))
    return found


def _bars(records: Sequence[tuple[Subject, BenchmarkRecord]], labels: Sequence[str], name: str) -> list[Bar]:
    measured = [(s, label, _whole(getattr(record, name))) for (s, record), label in zip(records, labels, strict=True)]
    return [Bar(f"{s.number} {label}", m.median, m.minimum, m.maximum) for s, label, m in measured if m is not None]


def _whole(measure: Measure | None) -> Measure | None:
    """None where its values cannot be drawn."""
    known = measure is not None and all(map(drawable, (measure.median, measure.minimum, measure.maximum)))
    return measure if known else None


def _layers(subjects: Sequence[Subject]) -> list[Block]:
    measured = [(s, s.layer_rows()) for s in subjects if s.layer_rows()]
    if not measured:
        return []
    keys = [Line(s.number, s.label, tuple((float(layer), error) for layer, error, _ in rows)) for s, rows in measured]
    values = [Line(s.number, s.label, tuple((float(layer), error) for layer, _, error in rows)) for s, rows in measured]
    finite = all(drawable(error) for line in (*keys, *values) for _, error in line.points)
    blocks: list[Block] = []
    if finite:
        blocks.append(
            lines_plot(
                "layers",
                "Error of each layer",
                [("keys, relative RMS", keys), ("values, relative RMS", values)],
                xlabel="layer",
                caption=f"On a logarithmic scale; what is below {tick(LEAST_KL)} is drawn there. Numbers are the summary's.",
                log=True,
            )
        )
    rows = []
    for s, found in measured:
        worst = max(found, key=lambda row: max(row[1:]))
        rows.append(
            (
                _who(s),
                cell(at(s.layers, "tokens")),
                cell(max(found[0][1:])),
                cell(max(found[-1][1:])),
                Cell(f"{figures(max(worst[1:]))} in layer {worst[0]}", Kind.NUMBER),
                cell(at(s.layers, "logits_error")),
            )
        )
    headers = ("file", "tokens", "first layer", "last layer", "largest", "logits")
    note = (
        "The file's own keys and values, read back from its caches, against the eager model's: root mean square of the difference over "
        "that of the values. An error made in a layer's attention output or feed-forward shows in the next layer."
    )
    return [*blocks, Table("Relative error of keys and values, whichever is larger", headers, tuple(rows)), Paragraph(note)]


def _verification(subjects: Sequence[Subject]) -> list[Block]:
    rows = []
    for s in subjects:
        found = s.manifest.get("verification")
        if not isinstance(found, Mapping):
            continue
        passed = found.get("passed") is True
        equal, compared = number(found.get("greedy_tokens_equal")), number(found.get("greedy_tokens"))
        rows.append(
            (
                _who(s),
                Cell("passed", Kind.GOOD) if passed else Cell("failed", Kind.BAD),
                text_cell(named(found, "against")),
                cell(found.get("tokens_compared")),
                cell(found.get("max_abs_error")),
                cell(found.get("mean_kl")),
                percent(found.get("top1_agreement")),
                MISSING if equal is None or compared is None else Cell(f"{equal:.0f} of {compared:.0f}", Kind.NUMBER),
                text_cell(model_card.bound(found.get("bound"))),
            )
        )
    headers = ("file", "result", "against", "tokens", "largest error of a logit", "mean KL", "top-1", "greedy tokens equal", "bound")
    return [Table("At export, in step with the reference", headers, tuple(rows))] if rows else []


def _machines(subjects: Sequence[Subject], compared: Sequence[Mapping[str, object]]) -> list[Block]:
    found: dict[tuple[str, ...], list[str]] = {}
    for s in subjects:
        for record in s.benchmarks:
            m = record.machine
            where = (record.target, m.cpu, m.architecture, str(m.cores), str(m.memory_bytes), m.system, m.runtime)
            found.setdefault(where, []).extend(record.noise)
    for index, comparison in enumerate(compared, 1):
        values = at(comparison, "machine")
        names = ("cpu", "architecture", "cores", "memory_bytes", "system", "runtime")
        key = tuple(str(at(values, name) or "") for name in names)
        noise = at(comparison, "noise")
        found.setdefault((f"side by side {index}", *key), []).extend(map(str, noise if isinstance(noise, list | tuple) else []))
    rows = []
    for (target, cpu, architecture, cores, memory, system, runtime), noise in found.items():
        gigabytes = f"{int(memory) / 1e9:.1f} GB" if memory.isdigit() and int(memory) else ""
        known = [text if text != "0" else "" for text in (cpu, architecture, cores, gigabytes, system, runtime)]
        quiet = Cell("it was quiet", Kind.GOOD) if not noise else Cell(printable("; ".join(dict.fromkeys(map(str, noise)))), Kind.BAD)
        rows.append((text_cell(target), *(text_cell(text) for text in known), quiet))
    headers = ("target", "processor", "architecture", "cores", "memory", "system", "runtime", "reasons to doubt the figures")
    return [Table("Where speeds were measured", headers, tuple(rows))] if rows else []


def _table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[Block]:
    """Without the columns that nothing was measured for, which are named below."""
    given = list(rows)
    kept = [i for i in range(len(headers)) if any(row[i].kind is not Kind.MISSING for row in given)]
    absent = [header for i, header in enumerate(headers) if i not in kept]
    table = Table(caption, tuple(headers[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in given))
    return [table, *([Paragraph(f"Measured for none of them: {'; '.join(absent)}.")] if absent else [])]


def _who(subject: Subject) -> Cell:
    return Cell(f"{subject.number} {subject.label}", link=subject.anchor)


def _median(record: BenchmarkRecord | None, name: str, factor: float = 1.0) -> Cell:
    measure: Measure | None = getattr(record, name) if record else None
    return MISSING if measure is None else cell(measure.median, factor=factor)


def _threads(record: BenchmarkRecord) -> Cell:
    """And the weight cache, where it is off."""
    return MISSING if number(record.threads) is None else Cell(record.threads_and_cache, Kind.NUMBER)


def _spread(measure: Measure | None, factor: float = 1.0) -> Cell:
    if measure is None or number(measure.median) is None:
        return MISSING
    low, high = number(measure.minimum), number(measure.maximum)
    spread = "" if low is None or high is None or measure.runs == 1 else f" ({figures(low * factor)} to {figures(high * factor)})"
    return Cell(figures(measure.median * factor) + spread, Kind.NUMBER)
