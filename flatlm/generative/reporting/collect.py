"""What a folder says of the exported files in it, ready to be reported."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.record import BenchmarkRecord
from flatlm.generative.inspect import inspect_file
from flatlm.generative.reporting.figures import drawable, number, printable, shortened
from flatlm.utilities.digests import file_digest
from flatlm.utilities.results import FILE_KEY, KINDS, FileResults, read_comparisons, read_results, result_path

SUFFIXES = (".tflite", ".litertlm")


@dataclass(frozen=True)
class Subject:
    """One exported file. Mappings are empty, and `benchmarks` too, where nothing was measured; their values are not checked.

    They are of the file's content as it is, as far as they tell which one they are of.
    """

    number: int
    """Its row in the summary, and its name in crowded plots."""
    name: str
    """Its path in the folder."""
    label: str
    """As short as tells it from the others."""
    manifest: Mapping[str, Any]
    inspection: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    benchmarks: tuple[BenchmarkRecord, ...]
    layers: Mapping[str, Any]
    problem: str | None = None
    """Why the file itself could not be read, where it could not."""
    outdated: tuple[str, ...] = ()
    """What was measured of an earlier content of the file, and is left out."""

    @property
    def anchor(self) -> str:
        return f"file-{self.number}"

    @property
    def recipe(self) -> str | None:
        return named(self.manifest, "recipe", "name")

    @property
    def family(self) -> str | None:
        return named(self.manifest, "family")

    @property
    def bytes(self) -> float | None:
        """Of the file, from whichever result tells."""
        found = number(self.inspection.get("bytes"))
        return found if found is not None or not self.benchmarks else number(self.benchmarks[0].file_bytes)

    def measured(self, name: str) -> float | None:
        """A number of the evaluation."""
        return number(self.evaluation.get(name))

    def layer_rows(self) -> list[tuple[int, float, float]]:
        """(layer, error of keys, error of values)."""
        rows = self.layers.get("layers")
        found = []
        for row in rows if isinstance(rows, list | tuple) else []:
            values = [number(value) for value in row] if isinstance(row, list | tuple) else []
            if len(values) == 3 and drawable(values[0]) and values[0] is not None and values[1] is not None and values[2] is not None:
                found.append((int(values[0]), values[1], values[2]))
        return found


@dataclass(frozen=True)
class Findings:
    """A folder's. `comparisons`: as `flatlm compare --save` wrote them."""

    folder: Path
    subjects: tuple[Subject, ...]
    comparisons: tuple[Mapping[str, Any], ...]


def collect(folder: Path) -> Findings:
    """Raises RuntimeFileError where there is nothing to report, or a result is damaged."""
    if not folder.is_dir():
        raise RuntimeFileError(f"{folder} is not a folder: give the one that exported files and their results lie in")
    found = {result.file: result for result in read_results(folder)}
    for suffix in SUFFIXES:
        for file in folder.rglob(f"*{suffix}"):
            if file.is_file() and not file.name.startswith("."):
                found.setdefault(file, FileResults(file, {}))
    comparisons = []
    for comparison in read_comparisons(folder):
        if not isinstance(comparison, Mapping):
            raise RuntimeFileError(f"{folder}: a comparison in it is not a JSON object: compare again with --save, or remove it")
        comparisons.append(comparison)
    if not found and not comparisons:
        raise RuntimeFileError(
            f"{folder} has no exported file and no result ({', '.join(f'*.{kind}.json' for kind in KINDS)}): "
            "export a model into it, and measure it with flatlm evaluate and flatlm benchmark"
        )
    subjects = [_subject(index, found[file], folder) for index, file in enumerate(sorted(found), 1)]
    return Findings(folder, tuple(_labelled(_named(subjects))), tuple(comparisons))


def named(values: object, *keys: str) -> str | None:
    """The text at nested keys; None where there is none, or it is not text."""
    value = at(values, *keys)
    return printable(value) if isinstance(value, str) and value else None


def at(values: object, *keys: str) -> Any:
    """The value at nested keys; None where there is none."""
    for key in keys:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def _subject(index: int, results: FileResults, folder: Path) -> Subject:
    file = results.file
    results, outdated = _of_this_content(results)
    inspection, problem = _object(results, "inspection"), None
    if not inspection and file.is_file():
        try:
            inspection = inspect_file(file).to_dict()
        except RuntimeFileError as error:
            problem = printable(str(error))
    manifest = _object(results, "manifest") or at(inspection, "manifest")
    return Subject(
        index,
        printable(file.relative_to(folder).as_posix()),
        printable(file.stem),
        manifest if isinstance(manifest, Mapping) else {},
        inspection,
        _object(results, "evaluation"),
        _benchmarks(results),
        _object(results, "layers"),
        problem,
        outdated,
    )


def _of_this_content(results: FileResults) -> tuple[FileResults, tuple[str, ...]]:
    """Without what tells that it is of another content than the file has now, and what that is; all of it where the file is away.

    An export to a file's name leaves beside it what was measured of the file before.
    """
    file = results.file
    if not file.is_file():
        return results, ()
    kept, outdated = dict(results.results), list[str]()
    size = file.stat().st_size
    if at(kept.get("inspection"), "bytes") not in (None, size):
        del kept["inspection"]
        outdated.append("inspection")
    evaluated, layers = at(kept.get("evaluation"), FILE_KEY), at(kept.get("layers"), FILE_KEY)
    if evaluated is not None or layers is not None:
        digest = _digest(file)
        if evaluated not in (None, digest):
            del kept["evaluation"]
            outdated.append("evaluation")
        # an evaluation with layers saves both, and the layers without a digest
        if "layers" in kept and (layers not in (None, digest) or (layers is None and "evaluation" in outdated)):
            del kept["layers"]
            outdated.append("per-layer error")
    records = _benchmarks(results)
    fresh = [i for i, record in enumerate(records) if record.file_bytes == size]
    if len(fresh) < len(records):
        kept["benchmark"] = [kept["benchmark"][i] for i in fresh]
        outdated += dict.fromkeys(f"speed on {printable(record.target)}" for record in records if record.file_bytes != size)
    return FileResults(file, kept), tuple(outdated)


def _digest(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise RuntimeFileError(f"{file} cannot be read ({error.strerror}): make it readable, or remove it") from error


def _object(results: FileResults, kind: str) -> Mapping[str, Any]:
    value = results.results.get(kind, {})
    if not isinstance(value, Mapping):
        raise RuntimeFileError(f"{result_path(results.file, kind)} is not a JSON object: measure again, or remove it")
    return value


def _benchmarks(results: FileResults) -> tuple[BenchmarkRecord, ...]:
    records = results.results.get("benchmark", [])
    try:
        return tuple(BenchmarkRecord.from_dict(record) for record in records)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        path = result_path(results.file, "benchmark")
        raise RuntimeFileError(f"{path} is not a list of benchmark records ({error!r}): measure again, or remove it") from error


def _named(subjects: Sequence[Subject]) -> list[Subject]:
    """By the file's name alone, where no two files in different folders share it: a sweep's folders repeat it."""
    names = [subject.name.rpartition("/")[2] for subject in subjects]
    if len(set(names)) < len(names):
        return list(subjects)
    return [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]


def _labelled(subjects: Sequence[Subject]) -> list[Subject]:
    """Called by the recipe where that tells all of them apart, else by the file's name, else by its path."""
    for choices in ([s.recipe or s.label for s in subjects], [s.label for s in subjects], [s.name for s in subjects]):
        short = [shortened(choice) for choice in choices]
        if not short or max(Counter(short).values()) == 1:
            break
    return [replace(subject, label=label) for subject, label in zip(subjects, short, strict=True)]
