"""What a report lacks, why, and the commands that measure it."""

from collections.abc import Mapping

from flatlm.generative.reporting.collect import Findings, Subject, at
from flatlm.generative.reporting.document import Block, Cell, Kind, Paragraph, Table

HOW = {
    "the file itself": "put it back into the folder",
    "verification": "flatlm export CHECKPOINT -o FILE, without --no-verify",
    "perplexity": "flatlm evaluate FILE --text TEXT --save",
    "distance from the checkpoint": "flatlm evaluate FILE --text TEXT --checkpoint CHECKPOINT --save",
    "tasks": "flatlm evaluate FILE --tasks NAME,... --save",
    "speed": "flatlm benchmark FILE --save",
    "per-layer error": "flatlm report DIR --checkpoint CHECKPOINT",
}
"""What may be missing, and what measures it."""
SIDE_BY_SIDE = "flatlm compare A B --save NAME"


def blocks(findings: Findings) -> list[Block]:
    """What is missing of which files, and what was left out as it is of an earlier content of them."""
    absent: dict[str, list[Subject]] = {what: [] for what in HOW}
    for s in findings.subjects:
        present = {
            "the file itself": bool(s.inspection),
            "verification": isinstance(s.manifest.get("verification"), Mapping),
            "perplexity": s.measured("perplexity") is not None,
            "distance from the checkpoint": s.measured("mean_kl") is not None,
            "tasks": bool(at(s.evaluation, "tasks")),
            "speed": bool(s.benchmarks),
            "per-layer error": bool(s.layer_rows()),
        }
        for what, there in present.items():
            if not there:
                absent[what].append(s)
    everything = len(findings.subjects)
    rows = []
    for what, lacking in absent.items():
        if lacking:
            whom = "all files" if len(lacking) == everything else ", ".join(s.name for s in lacking)
            rows.append((Cell(what), Cell(whom), Cell(HOW[what], Kind.CODE)))
    if not findings.comparisons:
        rows.append((Cell("files and peers side by side"), Cell("all files"), Cell(SIDE_BY_SIDE, Kind.CODE)))
    out: list[Block] = []
    if rows:
        out.append(Table("What is missing, and what measures it", ("what", "of", "how to get it"), tuple(rows)))
    for s in findings.subjects:
        if s.outdated:
            out.append(Paragraph(f"{s.name}: measured of an earlier content, left out: {'; '.join(s.outdated)}."))
    return out
