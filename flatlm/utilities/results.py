"""What was found out about a file lies beside it: `OUT.manifest.json` from the export, `OUT.evaluation.json`, `OUT.benchmark.json`, ...

Each is one JSON object or list. A report is made from a folder of them; the file itself need not be there any more.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import RuntimeFileError

KINDS = ("manifest", "inspection", "evaluation", "benchmark", "layers")
"""manifest: of the export. inspection: `Inspection.to_dict`. evaluation: `EvaluationReport.to_dict`, `TaskResults.to_evaluation` or both.
benchmark: a list of `BenchmarkRecord.to_dict`, one for each target. layers: `LayerErrors.to_dict`."""
COMPARISON_SUFFIX = ".comparison.json"
"""Of what `flatlm compare` found: several files in one run, so it lies beside none of them."""
TASK_KEYS = ("tasks", "task_runs")
"""Of an evaluation: what tasks gave; all other keys are of text."""
FILE_KEY = "file_sha256"
"""Of a saved evaluation: which content of the file it is of."""
Json = Mapping[str, Any] | Sequence[Any]


def result_path(file: Path, kind: str) -> Path:
    """Where a kind of result lies."""
    assert kind in KINDS
    return file.with_name(f"{file.name}.{kind}.json")


def save_result(file: Path, kind: str, value: Json) -> Path:
    """Write a result beside its file, whole or not at all; returns where."""
    path = result_path(file, kind)
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    return path


def save_evaluation(file: Path, found: Mapping[str, Any]) -> Path:
    """Write an evaluation beside its file; what an earlier one of the same content found, and this one did not look for, stays.

    Text's figures belong together, and are replaced together. Of tasks those of other names stay, if the same harness asked them in the
    same form.
    """
    with file.open("rb") as stream:
        value: dict[str, Any] = {FILE_KEY: hashlib.file_digest(stream, "sha256").hexdigest(), **found}
    earlier = _earlier_evaluation(file, value[FILE_KEY])
    if all(key in TASK_KEYS for key in found):
        value = {**{key: kept for key, kept in earlier.items() if key not in TASK_KEYS}, **value}
    runs, before = found.get("task_runs"), earlier.get("task_runs")
    if runs is None:
        value |= {key: earlier[key] for key in TASK_KEYS if key in earlier}
    elif before is not None and all(before.get(key) == runs[key] for key in ("lm_eval", "chat_template")):
        value["tasks"] = {**earlier["tasks"], **found["tasks"]}
        value["task_runs"] = {key: {**before[key], **each} if isinstance(each, dict) else each for key, each in runs.items()}
    return save_result(file, "evaluation", value)


def _earlier_evaluation(file: Path, digest: str) -> Mapping[str, Any]:
    """Nothing where there is none, or it is damaged, or of the file as it was before."""
    try:
        earlier = read_json_result(result_path(file, "evaluation"))
    except RuntimeFileError:
        return {}
    return earlier if isinstance(earlier, dict) and earlier.get(FILE_KEY) == digest else {}


@dataclass(frozen=True)
class FileResults:
    """All that a folder says about one exported file."""

    file: Path
    """Where the file is or was."""
    results: Mapping[str, Any]
    """By kind; a kind that was not measured is absent."""


def read_results(directory: Path) -> list[FileResults]:
    """Of every file in a folder and below, by its path. Raises RuntimeFileError for a result that is not JSON."""
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted(directory.rglob("*.json")):
        name, _, kind = path.name.removesuffix(".json").rpartition(".")
        if kind in KINDS and name.endswith((".tflite", ".litertlm")):
            found.setdefault(path.with_name(name), {})[kind] = read_json_result(path)
    return [FileResults(file, results) for file, results in sorted(found.items())]


def read_comparisons(directory: Path) -> Iterator[Any]:
    """What each `flatlm compare --save` in a folder and below found."""
    for path in sorted(directory.rglob(f"*{COMPARISON_SUFFIX}")):
        yield read_json_result(path)


def read_json_result(path: Path) -> Any:
    """Raises RuntimeFileError, with the way out, where a result file cannot be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RuntimeFileError(f"{path} is not a result that can be read ({error}): measure again, or remove it") from error
