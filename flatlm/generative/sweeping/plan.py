"""A sweep's file as data: models x recipes x prefill lengths x caches, each a cell, with what is asked of all of them.

Everything that the file alone can have wrong is found here, in one error; whether a cell is possible is found when it is its turn.
"""

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm.errors import RecipeError, SweepError, TargetError
from flatlm.generative.harness.request import TaskRequest
from flatlm.generative.sweeping.sections import Mistakes, Section, is_whole, load_yaml, shown
from flatlm.generative.targets.open import open_target
from flatlm.layers.config import CacheDtype
from flatlm.quantize.recipes import Recipe
from flatlm.utilities.recipe_file import find_recipe

MOST_CELLS = 10_000
LONGEST_NAME = 150
"""Of a cell: it names a folder, and in it files with suffixes."""
FORMATS = ["tflite", "litertlm"]


@dataclass(frozen=True)
class Model:
    """A checkpoint, and how it is to be read."""

    name: str
    checkpoint: Path
    lora: Path | None = None
    tokenizer: Path | None = None
    """For evaluation, where it is not the checkpoint's."""
    family: str | None = None
    ignored_config_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluateOptions:
    """What is foretold, against the checkpoint, and tasks; one of both at least. None: as `flatlm evaluate` does without being told."""

    text: Path | None = None
    max_tokens: int | None = None
    context: int | None = None
    stride: int | None = None
    greedy_prompts: int | None = None
    layers: bool = False
    """The error of each layer too, on the text's first tokens."""
    tasks: TaskRequest | None = None


@dataclass(frozen=True)
class BenchmarkOptions:
    """Where, and what is measured there. None: a default that fits the file."""

    targets: tuple[str, ...]
    prefill: int | None = None
    decode: int | None = None
    depths: tuple[int, ...] = (0,)
    runs: int = 5
    warmup: int = 1
    threads: int | None = None
    weight_cache: bool = True
    runner: Path | None = None
    """For adb."""
    ssh_options: tuple[str, ...] = ()
    remote_python: str = "python3"


@dataclass(frozen=True)
class Cell:
    """One file to be made, and all that is asked of it."""

    model: Model
    recipe: Recipe
    prefill: tuple[int, ...] | None
    kv_cache_len: int | None
    kv_cache_dtype: str
    format: str
    prefill_logits: bool
    calibration: Path | None
    verify: bool
    """Whether the file is proved before it gets its name, on `verify_tokens` tokens (None: the usual number)."""
    verify_tokens: int | None
    evaluate: EvaluateOptions | None
    benchmark: BenchmarkOptions | None
    keep_file: bool

    @property
    def name(self) -> str:
        """Of its folder and its file: `smollm-dynamic_int8-p16_128-kv1024`."""
        parts = [plain_name(self.model.name), plain_name(self.recipe.name)]
        parts += ["p" + "_".join(map(str, self.prefill))] if self.prefill else []
        parts += [f"kv{self.kv_cache_len}"] if self.kv_cache_len else []
        parts += [self.kv_cache_dtype] if self.kv_cache_dtype != CacheDtype.FLOAT32 else []
        return "-".join(parts)

    @property
    def targets(self) -> tuple[str, ...]:
        return self.benchmark.targets if self.benchmark else ()


@dataclass(frozen=True)
class Sweep:
    """A file's cells, in its order: the model changes slowest."""

    file: Path
    cells: tuple[Cell, ...]

    @property
    def inputs(self) -> list[Path]:
        """Every file and directory that its cells read."""
        found: dict[Path, None] = {}
        for cell in self.cells:
            options = cell.evaluate
            evaluated = (options.text, options.tasks and options.tasks.include_path) if options else ()
            paths = (cell.model.checkpoint, cell.model.lora, cell.model.tokenizer, cell.calibration, *evaluated)
            found |= {path: None for path in paths if path is not None}
        return list(found)


def plain_name(name: str) -> str:
    """With nothing in it that a path could not have."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", name).lstrip(".-") or "_"


def read_sweep(path: Path) -> Sweep:
    """Relative paths in the file are relative to it. Raises SweepError, which lists every mistake and what to do about it."""
    mistakes = Mistakes(path)
    content = load_yaml(path)
    if content is None:
        raise SweepError(f"{path} is empty: it needs models and recipes")
    reader = _Reader(Section(content, "", mistakes), path.absolute().parent)
    cells = reader.cells()
    mistakes.require_none()
    return Sweep(path, tuple(cells))


class _Reader:
    def __init__(self, top: Section, folder: Path) -> None:
        self.top, self.folder, self.mistakes = top, folder, top.mistakes

    def cells(self) -> list[Cell]:
        top = self.top
        top.require("models", "a list of checkpoints")
        models = [self._model(where, value) for where, value in top.items("models")]
        top.require("recipes", "a list of names (flatlm recipes lists them) or of recipe.json files")
        named = [(where, self._recipe(where, value)) for where, value in top.items("recipes")]
        prefills = [self._lengths(where, value) for where, value in top.items("prefill")] or [None]
        lengths = top.wholes("kv_cache_len", least=2) or (None,)
        dtypes = [self._dtype(where, value) for where, value in top.items("kv_cache_dtype")] or [str(CacheDtype.FLOAT32)]
        format_ = top.choice("format", FORMATS, FORMATS[0])
        prefill_logits = top.flag("prefill_logits")
        calibration = self._file(top, "calibration")
        verify, verify_tokens = self._verify()
        evaluate, benchmark = self._evaluate(), self._benchmark()
        keep_file = top.flag("keep_files", True)
        top.close()
        for where, recipe in named:
            if recipe is not None and recipe.method.needs_text and calibration is None:
                self.mistakes.add(where, f"recipe {recipe.name} needs text to calibrate on: add `calibration: FILE` (.txt, .json, .jsonl)")
        if (count := math.prod(map(len, (models, named, prefills, lengths, dtypes)))) > MOST_CELLS:
            self.mistakes.add("", f"has {count} cells, and {MOST_CELLS} are the most: split it")
            return []
        shared = (format_, prefill_logits, calibration, verify, verify_tokens, evaluate, benchmark, keep_file)
        found = [
            Cell(model, recipe, prefill, length, dtype, *shared)
            for model, (_, recipe), prefill, length, dtype in itertools.product(models, named, prefills, lengths, dtypes)
            if model is not None and recipe is not None
        ]
        if not self.mistakes:
            self._require_distinct(found)
        return found

    def _require_distinct(self, cells: list[Cell]) -> None:
        names: set[str] = set()
        for cell in cells:
            name = cell.name.lower()  # some file systems take capitals for small letters
            if len(name) > LONGEST_NAME:
                self.mistakes.add("", f"the cell {name[:60]}... has too long a name for a file: give its model a shorter `name`")
            if name in names:
                self.mistakes.add(
                    "", f"two cells are both {cell.name}: remove what is there twice, or tell models (`name: ...`) and recipe files apart"
                )
                return
            names.add(name)

    def _model(self, where: str, value: Any) -> Model | None:
        section = Section({"checkpoint": value} if isinstance(value, str) else value, where, self.mistakes)
        section.require("checkpoint", "a directory, or a .gguf file")
        checkpoint = self._existing(section, "checkpoint")
        keys = section.texts("ignore_config_keys")
        name, family = section.text("name"), section.text("family")
        lora, tokenizer = self._existing(section, "lora"), self._existing(section, "tokenizer")
        section.close()
        if checkpoint is None:
            return None
        found = name or plain_name(checkpoint.resolve().name.removesuffix(".gguf"))
        return Model(found, checkpoint, lora, tokenizer, family, keys)

    def _recipe(self, where: str, value: Any) -> Recipe | None:
        if not isinstance(value, str):
            self.mistakes.add(where, f"must be a recipe's name or a recipe.json file, not {shown(value)}")
            return None
        try:
            return find_recipe(str(self.folder / value) if value.endswith(".json") else value)
        except RecipeError as error:
            self.mistakes.add(where, str(error))
            return None

    def _lengths(self, where: str, value: Any) -> tuple[int, ...] | None:
        if is_whole(value, 1):
            self.mistakes.add(where, f"is {value}, and must be a list: [[16, 128]] is one file with both lengths, [[16], [128]] are two")
            return None
        if not isinstance(value, list) or not value or not all(is_whole(item, 2) for item in value):
            self.mistakes.add(where, f"must be a list of whole numbers of at least 2, such as [16, 128], not {shown(value)}")
            return None
        return tuple(sorted(set(value)))

    def _dtype(self, where: str, value: Any) -> str:
        if value not in [str(dtype) for dtype in CacheDtype]:
            self.mistakes.add(where, f"is {shown(value)}; use {', '.join(CacheDtype)}")
        return str(value)

    def _verify(self) -> tuple[bool, int | None]:
        value = self.top.get("verify")
        if is_whole(value, 1):
            return True, int(value)
        if value is not None and not isinstance(value, bool):
            self.top.wrong("verify", f"must be true, false, or how many tokens to compare, not {shown(value)}")
        return value is not False, None

    def _evaluate(self) -> EvaluateOptions | None:
        section = self.top.section("evaluate")
        if section is None:
            return None
        tasks = self._tasks(section)
        if section.get("tasks") is None:
            section.require("text", "a .txt, .json or .jsonl file; or `tasks`, a list of names")
        text = self._file(section, "text")
        options = EvaluateOptions(
            text,
            section.whole("max_tokens"),
            section.whole("context"),
            section.whole("stride"),
            section.whole("greedy_prompts", least=0),
            section.flag("layers"),
            tasks,
        )
        if section.get("text") is None and section.get("tasks") is not None:
            section.require_none(("max_tokens", "context", "stride", "greedy_prompts", "layers"), "is about text: add `text: FILE`")
        section.close()
        return None if text is None and tasks is None else options

    def _tasks(self, section: Section) -> TaskRequest | None:
        names = section.texts("tasks")
        limit = section.get("limit")
        if limit is not None and not is_whole(limit, 1) and not (isinstance(limit, float) and 0 < limit < 1):
            section.wrong("limit", f"must be a whole number of questions, or a part of them between 0 and 1, not {shown(limit)}")
        include_path = self._existing(section, "include_path")
        if include_path is not None and not include_path.is_dir():
            section.wrong("include_path", f"{include_path} is a file: name a directory of tasks")
        request = TaskRequest(names, section.whole("num_fewshot", least=0), limit, include_path, section.flag("apply_chat_template"))
        if section.get("tasks") is None:
            section.require_none(("limit", "num_fewshot", "include_path", "apply_chat_template"), "is about tasks: add `tasks: [NAME]`")
        return request if names else None

    def _benchmark(self) -> BenchmarkOptions | None:
        section = self.top.section("benchmark")
        if section is None:
            return None
        targets: list[str] = []
        for where, target in section.items("targets"):
            try:
                open_target(str(target))
            except TargetError as error:
                self.mistakes.add(where, str(error))
            if target in targets:
                self.mistakes.add(where, f"{target} is there twice")
            targets.append(str(target))
        warmup = section.whole("warmup", least=0)
        options = BenchmarkOptions(
            tuple(targets) or ("local",),
            section.whole("prefill"),
            section.whole("decode"),
            section.wholes("depths", least=0) or (0,),
            section.whole("runs") or 5,
            1 if warmup is None else warmup,
            section.whole("threads"),
            section.flag("weight_cache", True),
            self._file(section, "runner"),
            section.texts("ssh_options"),
            section.text("remote_python") or "python3",
        )
        section.close()
        if options.runner is None and any(target.startswith("adb") for target in targets):
            section.wrong("targets", "adb needs `runner: PATH`, LiteRT's or LiteRT-LM's benchmark program for the device")
        return options

    def _file(self, section: Section, key: str) -> Path | None:
        path = self._existing(section, key)
        if path is not None and path.is_dir():
            section.wrong(key, f"{path} is a directory: name a file")
            return None
        return path

    def _existing(self, section: Section, key: str) -> Path | None:
        value = section.text(key)
        if value is None:
            return None
        path = self.folder / value
        try:
            found = path.exists()
        except (OSError, ValueError):  # too long, or with a zero byte
            found = False
        if not found:
            section.wrong(key, f"{path} does not exist; a relative path begins at the sweep file")
            return None
        return path
