"""A model and a task, put together by name (FlagAI's AutoLoader): the eager model, the tokenizer, the export, and the file's runner."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.errors import ConfigError
from flatlm.tasks.table import DECODER, ENCODER, ENCODER_DECODER, INFILLING, find_task, fitting
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.reading import Reading

if TYPE_CHECKING:
    from flatlm.convert.worker import Compiler
    from flatlm.tasks.base_model import BaseModel
    from flatlm.tasks.runner import TaskRunner
    from flatlm.utilities.exporter import ExportReport
    from flatlm.utilities.tokenizing.tokenizer import Tokenizer

KINDS = {"EncoderConfig": ENCODER, "EncoderDecoderConfig": ENCODER_DECODER}
"""Of models, by their configuration's type; of all others, decoders (a `ModelConfig` that fills blanks is of a kind of its own)."""


class AutoLoader:
    """`AutoLoader("ner", model_name="RoBERTa-base-ch", model_dir="./checkpoints")`: the checkpoint in ./checkpoints/RoBERTa-base-ch.

    A folder ./checkpoints/RoBERTa-base-ch-ner, where there is one, comes first, as FlagAI calls a model that was tuned for a task. What
    else FlagAI's takes (device, class_num, ...) is ignored: it is for training. Raises ConfigError for an unknown task, a model that is not
    there, and one that cannot do the task, with the tasks that it can do.
    """

    def __init__(self, task_name: str = "lm", model_name: str = "", model_dir: str | Path = "./checkpoints/", **ignored: Any) -> None:
        self.task = find_task(task_name)
        self.directory = _find(Path(model_dir), model_name, task_name)
        kind = model_kind(self.directory)
        if kind not in self.task.kinds:
            raise ConfigError(
                f"{self.directory} cannot do {self.task.name}: its model is of the kind {kind}; it can do {', '.join(fitting(kind))}"
            )
        self.kind = kind
        self.reading = Reading(task=self.task.name if kind == ENCODER else None)
        if self.reading.task is not None:
            build_config(self.directory, self.reading)  # says what is wrong with the head

    def get_model(self) -> "BaseModel":
        """The eager model with the task's head, its weights in float32. Raises CheckpointError where they do not fit."""
        return self._model

    def get_tokenizer(self) -> "Tokenizer":
        """Raises TokenizerError."""
        return self._tokenizer

    def export(
        self,
        path: str | Path,
        *,
        recipe: str = "dynamic_int8",
        verify: bool = True,
        compiler: "Compiler | None" = None,
        **request: Any,
    ) -> "ExportReport":
        """Export the checkpoint for the task, to a .tflite file or a .litertlm bundle, and prove it.

        `recipe`: a recipe's name, or a recipe.json. `request`: other fields of an `ExportRequest`, such as prefill_lengths. What
        `get_model` gave and was changed since is not what is exported: save it, and export that. `compiler`: as `exporter.export` has it.
        Raises FlatlmError, VerificationFailed.
        """
        from flatlm.generative.prove import prover
        from flatlm.utilities.exporter import ExportRequest, export
        from flatlm.utilities.recipe_file import find_recipe

        asked = ExportRequest(self.directory, Path(path), find_recipe(recipe), reading=self.reading, **request)
        return export(asked, prove=prover(asked) if verify else None, compiler=compiler)

    def runner(self, path: str | Path, *, output_tokenizer: str | Path | None = None, threads: int | None = None) -> "TaskRunner":
        """The task's runner on a file that `export` wrote, with this model's tokenizer. Raises RuntimeFileError.

        `output_tokenizer`: that of what an encoder-decoder writes, where it is another.
        """
        from flatlm.tasks.runner import open_task

        return open_task(path, task=self.task.name, tokenizer=self.directory, output_tokenizer=output_tokenizer, threads=threads)

    @cached_property
    def _model(self) -> "BaseModel":
        from flatlm.tasks.base_model import BaseModel
        from flatlm.tasks.model_record import ModelRecord

        class_name = f"{self.directory.name} for {self.task.name}"
        made: type[BaseModel] = type("AutoModel", (BaseModel,), {"record": ModelRecord(class_name, task=self.reading.task)})
        return made.from_pretrained(self.directory)

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from flatlm.utilities.tokenizing.tokenizer import Tokenizer

        return Tokenizer.load(self.directory)


def model_kind(directory: Path) -> str:
    """The kind of a checkpoint's model, by its config.json. Raises ConfigError."""
    config, _ = build_config(directory)
    if getattr(config, "fills_blanks", False):
        return INFILLING
    return KINDS.get(type(config).__name__, DECODER)


def _find(model_dir: Path, model_name: str, task_name: str) -> Path:
    """The model's folder. Raises ConfigError where there is none."""
    own, tuned = model_dir / model_name, model_dir / f"{model_name}-{task_name}"
    for directory in (tuned, own):
        if (directory / "config.json").is_file():
            return directory
    raise ConfigError(
        f"there is no model in {own}: nothing is downloaded, so put its config.json, its weights (pytorch_model.bin or *.safetensors) and "
        "its tokenizer there"
    )
