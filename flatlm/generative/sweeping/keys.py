"""The key of each step: a digest of everything that decides its result. A step whose key was done is not done again."""

import functools
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flatlm import __version__
from flatlm.errors import SweepError
from flatlm.generative.harness.request import TaskRequest
from flatlm.generative.sweeping.plan import Cell, Model
from flatlm.generative.sweeping.record import BENCHMARK, EVALUATE, EXPORT
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.digests import digest_of, file_digest, weight_states

_PACKAGES = ("torch", "transformers", "peft", "litert-torch", "ai-edge-litert", "litert-lm-builder")
_READ_WHOLE = (".json", ".model", ".txt", ".jinja")
"""Suffixes of what a checkpoint's directory holds beside its weights: configuration, tokenizer, chat template."""


class Keys:
    """Digests files once, however many cells share them."""

    def __init__(self) -> None:
        self._file = functools.cache(_digest_file)
        self._model = functools.cache(self._digest_model)
        self._tasks = functools.cache(self._digest_tasks)

    def of(self, cell: Cell) -> dict[str, str]:
        """By step, in the order they are done. Raises a FlatlmError where the checkpoint or a file cannot be read.

        The export's is in all others. A benchmark on `local` is this machine's. Where a model lies and what it is called does not count.
        """
        export = _digest(
            flatlm=__version__,
            packages=[_version(name) for name in _PACKAGES],
            model=self._model(cell.model),
            recipe=cell.recipe.to_dict(),
            lengths=[cell.prefill, cell.kv_cache_len, cell.kv_cache_dtype],
            format=[cell.format, cell.prefill_logits],
            calibration=self._text(cell.calibration) if cell.recipe.calibrated and cell.calibration else None,
            verify=[cell.verify, cell.verify_tokens],
        )
        keys = {EXPORT: export}
        if cell.evaluate is not None:
            tokenizer, text = cell.model.tokenizer, cell.evaluate.text
            keys[EVALUATE] = _digest(
                export=export,
                text=text and self._text(text),
                tokenizer=tokenizer and self._beside(tokenizer),
                options={name: value for name, value in asdict(cell.evaluate).items() if name not in ("text", "tasks")},
                tasks=cell.evaluate.tasks and self._tasks(cell.evaluate.tasks),
            )
        if cell.benchmark is not None:
            options = {name: value for name, value in asdict(cell.benchmark).items() if name not in ("targets", "runner")}
            runner = cell.benchmark.runner and self._file(cell.benchmark.runner)
            for target in cell.benchmark.targets:
                machine = platform.node() if target == "local" else ""
                keys[BENCHMARK + target] = _digest(export=export, target=target, machine=machine, options=options, runner=runner)
        return keys

    def _text(self, path: Path) -> list[str]:
        """The suffix says how it is read."""
        return [path.suffix, self._file(path)]

    def _digest_tasks(self, request: TaskRequest) -> Mapping[str, Any]:
        """What is asked, by which harness, and every file of one's own tasks. Raises RuntimeFileError where there is no harness."""
        from flatlm.generative.harness.tasks import harness_version

        folder = request.include_path
        files = [] if folder is None else [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".pyc"]
        own = {str(file.relative_to(folder)): self._file(file) for file in files if folder is not None}
        return {**asdict(request), "include_path": own, "lm_eval": harness_version()}

    def _digest_model(self, model: Model) -> str:
        with open_checkpoint(model.checkpoint, lora=model.lora) as checkpoint:
            weights = checkpoint.fingerprint()
        beside = [self._beside(path) for path in (model.checkpoint, model.lora) if path is not None and path.is_dir()]
        states = [weight_states(path) for path in (model.checkpoint, model.lora) if path is not None]
        return _digest(weights=weights, states=states, beside=beside, family=model.family, ignored=model.ignored_config_keys)

    def _beside(self, path: Path) -> Mapping[str, str]:
        """Of a directory's small files by name, or of the one file."""
        files = [file for file in sorted(path.iterdir()) if file.suffix in _READ_WHOLE] if path.is_dir() else [path]
        return {file.name: self._file(file) for file in files if file.is_file()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest(**facts: Any) -> str:
    return digest_of(facts)


def _digest_file(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror}") from error
