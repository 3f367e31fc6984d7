"""What a report lacks, why, and the commands that measure it."""

from collections.abc import Mapping
from typing import Any

from flatlm.generative.reporting.collect import Findings, Subject, at, named
from flatlm.generative.reporting.document import Block, Cell, Kind, Paragraph, Table

PER_LAYER = "per-layer error"
HOW = {
    "the file itself": "put it back into the folder",
    "verification": "flatlm export CHECKPOINT -o FILE, without --no-verify",
    "perplexity": "flatlm evaluate FILE --text TEXT --save",
    "distance from the checkpoint": "flatlm evaluate FILE --text TEXT --checkpoint CHECKPOINT --save",
    "tasks": "flatlm evaluate FILE --tasks NAME,... --save",
    "speed": "flatlm benchmark FILE --save",
    PER_LAYER: "flatlm report DIR --checkpoint CHECKPOINT",
}
"""What may be missing, and what measures it."""
SIDE_BY_SIDE = "flatlm compare A B --save NAME"
WITH_ADAPTER = "flatlm evaluate FILE --text TEXT --checkpoint CHECKPOINT --lora ADAPTER --layers --save"
"""What measures the error of each layer of a file that has an adapter merged into it."""


def has_adapter(manifest: Mapping[str, Any]) -> bool:
    """Is a LoRA adapter merged into the file's weights, so that its checkpoint alone is not its reference?"""
    return isinstance(manifest.get("lora"), Mapping)


def blocks(findings: Findings) -> list[Block]:
    """What is missing of which files, and what was left out as it is of an earlier content, what failed."""
    absent: dict[str, list[Subject]] = {what: [] for what in HOW}
    for s in findings.subjects:
        present = {
            "the file itself": bool(s.inspection),
            "verification": isinstance(s.manifest.get("verification"), Mapping),
            "perplexity": s.measured("perplexity") is not None,
            "distance from the checkpoint": s.measured("mean_kl") is not None,
            "tasks": bool(at(s.evaluation, "tasks")),
            "speed": bool(s.benchmarks),
            PER_LAYER: bool(s.layer_rows()),
        }
        for what, there in present.items():
            if not there:
                absent[what].append(s)
    everything = len(findings.subjects)
    rows = []
    adapted = [s for s in absent[PER_LAYER] if has_adapter(s.manifest)]
    absent[PER_LAYER] = [s for s in absent[PER_LAYER] if s not in adapted]
    for what, how, lacking in (
        *((what, HOW[what], absent[what]) for what in HOW),
        (f"{PER_LAYER}, with an adapter", WITH_ADAPTER, adapted),
    ):
        if lacking:
            whom = "all files" if len(lacking) == everything else ", ".join(s.name for s in lacking)
            rows.append((Cell(what), Cell(whom), Cell(how, Kind.CODE)))
    if not findings.comparisons:
        rows.append((Cell("files and peers side by side"), Cell("all files"), Cell(SIDE_BY_SIDE, Kind.CODE)))
    out: list[Block] = []
    if rows:
        out.append(Table("What is missing, and what measures it", ("what", "of", "how to get it"), tuple(rows)))
    for s in findings.subjects:
        if s.outdated:
            out.append(Paragraph(f"{s.name}: measured of an earlier content, left out: {'; '.join(s.outdated)}."))
        if problem := named(s.layers, "problem"):
            out.append(Paragraph(f"{s.name}: the error of each layer could not be measured: {problem}"))
    return out
