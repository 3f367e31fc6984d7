"""A model of any kind as FlagAI's users know one: loaded from a local directory, called by keyword, saved again.

It is for looking into a model, trying it and changing its weights, in float32 and without a KV cache. What is exported is the checkpoint:
`save_pretrained` writes one.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from flatlm.errors import CheckpointError, ConfigError
from flatlm.tasks.crf_loss import blank_crf, crf_loss
from flatlm.tasks.forward import Forward, forward_of
from flatlm.tasks.model_record import ModelRecord
from flatlm.tasks.saving import save_checkpoint, with_architecture
from flatlm.utilities.checkpoints.blank import DEFAULT_SPREAD, BlankStore
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.crf_facts import crf_tensors
from flatlm.utilities.configs.registry import config_from
from flatlm.utilities.kinds.table import kind_of
from flatlm.utilities.reading import Reading
from flatlm.utilities.weights.loader import ModelLoader
from flatlm.utilities.weights.slots import Slot
from flatlm.utilities.weights.unpacking import checkpoint_tensors

TRAINING_ONLY = frozenset({"checkpoint_activations", "checkpoint_num_layers", "device", "only_download_config"})
"""Arguments that FlagAI's scripts pass to a constructor and that no number of a forward pass depends on."""
EAGER_LENGTH = 1024
"""Tokens that a model's caches would have room for, where it has caches: a forward pass uses none."""


class BaseModel(nn.Module):
    """A model with its head. Subclasses (`flatlm.tasks.models`) differ in the families and the task that they are for: their `record`.

    `config`: the values of config.json, overrides among them. `module`: the re-authored model, whose parameters FlatLM names. `crf`: the
    tensors of a CRF that the checkpoint has behind its labels, by their names.
    """

    record: ClassVar[ModelRecord] = ModelRecord("BaseModel")

    def __init__(
        self, values: Mapping[str, Any], module: nn.Module, slots: tuple[Slot, ...], family: str, crf: Mapping[str, Tensor]
    ) -> None:
        """Use `from_pretrained`, `from_pretrain` or `init_from_json`."""
        super().__init__()
        self.crf = dict(crf)
        self.config = dict(values)
        self.family = family
        self.module = module
        self._slots = slots
        self._forward: Forward = forward_of(module)
        self.eval()

    @classmethod
    def from_pretrained(cls, directory: str | Path, **overrides: Any) -> Self:
        """From a checkpoint's directory: config.json beside safetensors or torch files. `overrides` replace values of config.json.

        Raises ConfigError or CheckpointError, with what is missing and where it belongs. Nothing is downloaded.
        """
        directory = Path(directory)
        reader = ConfigReader.from_directory(directory)
        with open_checkpoint(directory) as checkpoint:
            return cls._build(reader, checkpoint, directory, overrides)

    @classmethod
    def from_pretrain(cls, download_path: str | Path = "./checkpoints/", model_name: str = "", **overrides: Any) -> Self:
        """From `download_path`/`model_name`/, which holds config.json and pytorch_model.bin or safetensors files. Nothing is downloaded."""
        directory = Path(download_path) / model_name
        if not (directory / "config.json").is_file():
            raise ConfigError(
                f"{directory} has no config.json: nothing is downloaded, so put the model's config.json, its weights (pytorch_model.bin "
                "or *.safetensors) and its tokenizer there"
            )
        return cls.from_pretrained(directory, **overrides)

    @classmethod
    def init_from_json(cls, config_file: str | Path = "./config.json", *, seed: int = 0, **overrides: Any) -> Self:
        """A model of a configuration, its weights random: matrices normal (initializer_range, or 0.02), norms 1, biases 0.

        `overrides` replace values of the file. Raises ConfigError, also for an override that the family does not know.
        """
        file = Path(config_file)
        reader = ConfigReader.from_file(file)
        spread = overrides.get("initializer_range", reader.values.get("initializer_range", DEFAULT_SPREAD))
        if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 < spread < 10:
            raise reader.wrong("initializer_range", "must be a positive number")
        return cls._build(reader, BlankStore(file.parent, seed=seed, spread=float(spread)), file.parent, overrides)

    @classmethod
    def _build(cls, reader: ConfigReader, checkpoint: TensorStore, directory: Path, overrides: Mapping[str, Any]) -> Self:
        own = {key: value for key, value in overrides.items() if key not in TRAINING_ONLY}
        reader = ConfigReader({**reader.values, **own}, reader.source)
        record = cls.record
        family = record.families[0] if record.families and not reader.architecture else None
        config, builder = config_from(reader, directory, Reading(family, tuple(own), task=record.task))
        if record.families and builder.family not in record.families:
            raise ConfigError(f"{reader.source}: is a {builder.family}; {record.name} is for {', '.join(record.families)}: use BaseModel")
        for key in own:
            if not reader.heeds(key):
                close = difflib.get_close_matches(key, reader.keys_read(), 1)
                hint = f"did you mean {close[0]}?" if close else f"it reads {', '.join(reader.keys_read())}"
                raise ConfigError(f"{record.name} has no {key} to override: the family {builder.family} does not read it; {hint}")
        loader = ModelLoader(checkpoint, builder.tensor_names)
        module = kind_of(config).build(config, EAGER_LENGTH)
        plan = loader.load(module)
        slots = tuple(weight.slot for weight in plan.weights.values())
        crf = crf_tensors(checkpoint)
        if record.crf and not crf:
            if not isinstance(checkpoint, BlankStore):
                raise CheckpointError(f"{directory} has no CRF (crf.transitions, or crf_layer.trans), which {record.name} is for")
            crf = blank_crf(config.head.labels)
        return cls(reader.values, module, slots, builder.family, crf)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors, as `from_pretrained`, `flatlm export` and transformers read them.

        `architectures` names the head that the model has. The directory is created; each file appears whole or not at all. Loading gives
        the same parameters, bit for bit. A tokenizer is not written: copy its files beside them. Raises OutputError.
        """
        tensors = checkpoint_tensors(self._slots, dict(self.module.named_parameters()))
        values = with_architecture(self.config, self.family, getattr(self.module.config, "task", None))
        save_checkpoint(Path(directory), values, {**tensors, **self.crf})

    def forward(self, **inputs: Any) -> dict[str, Any]:
        """What the model makes of inputs given by keyword, such as input_ids [B, T]; keywords that it does not know are ignored.

        Gives `logits`; `hidden_states`, a tuple of every layer's [B, T, D], the embeddings first; `loss` where `labels` are given, which is
        the CRF's where the checkpoint has one.
        """
        known = {key: value for key, value in inputs.items() if key in self._forward.arguments and value is not None}
        labels = known.pop("labels") if self.crf and "labels" in known else None
        out = self._forward(**known)
        if labels is not None:
            out["loss"] = crf_loss(self.crf, out["logits"], labels)
        return out
