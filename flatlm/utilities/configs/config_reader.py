"""A checkpoint's config.json, read key by key, so that a key which nobody read is seen."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flatlm.errors import ConfigError
from flatlm.utilities.json_file import read_json

INERT_KEYS = frozenset(
    """
    _name_or_path architectures attention_dropout attn_dropout auto_map bos_token_id chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id
    hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder is_encoder_decoder is_llama_config label2id length_penalty
    max_length min_length model_type no_repeat_ngram_size num_beams num_return_sequences output_attentions
    output_hidden_states output_past output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unsloth_fixed unsloth_version use_cache
    """.split()  # noqa: SIM905 - a table that reads better as words
)
"""Keys that do not change an inference's logits: training, generation defaults, bookkeeping, token ids (the tokenizer's affair)."""

_ABSENT: Any = object()

OLD_ROPE_KEYS = ("rope_theta", "rope_scaling")
"""Keys that an older config.json has in the place of `rope_parameters`."""


class Section(dict[str, Any]):
    """An object in config.json: its keys are attributes too."""

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise AttributeError(f"there is no {key} among {', '.join(self)}")
        return _with_attributes(self[key])


def _with_attributes(value: Any) -> Any:
    return Section(value) if isinstance(value, dict) else value


class ConfigReader:
    """Typed access to a JSON object. `source` names it in errors: the file, and for nested objects the key too."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source
        self.task: str | None = None
        """What the user wants the model for; None: what it was trained for. Families that have a choice read it by `heed_task`."""
        self.task_heeded = False
        self._read: set[str] = set()
        self._filled_in: dict[str, Any] = {}
        self._known: Any = None  # transformers' configuration of these values, once it was asked for

    @classmethod
    def from_directory(cls, directory: Path) -> "ConfigReader":
        """Read `directory`/config.json, or the metadata of a GGUF file. Raises ConfigError (CheckpointError for a broken GGUF file)."""
        path = directory / "config.json"
        if not path.is_file():
            from flatlm.utilities.checkpoints.gguf_paths import find_gguf

            if (file := find_gguf(directory)) is not None:
                from flatlm.utilities.checkpoints.gguf_config import read_config

                return cls(read_config(file), str(file))
        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a directory: give a checkpoint directory with config.json, weights and tokenizer")
        if not path.is_file():
            raise ConfigError(f"{path} is missing: a checkpoint directory holds config.json beside its weights")
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: Path) -> "ConfigReader":
        """Read a JSON object. Raises ConfigError."""
        return cls(read_json(path, ConfigError), str(path))

    def __getattr__(self, key: str) -> Any:
        """The value of a key, which counts as read: `hf_config.hidden_size`. An object is a dict whose keys are attributes too.

        A key that is not there is what transformers' configuration class for the `model_type` makes of its absence, where transformers is
        installed and knows the type, as config.json leaves out what the class knows; otherwise AttributeError, so that
        `getattr(hf_config, "key", default)` works.
        """
        if key.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {key}")
        if key in self.values:
            self._read.add(key)
            return _with_attributes(self.values[key])
        rope = self.values.get("rope_parameters")
        if key in OLD_ROPE_KEYS and isinstance(rope, dict) and "rope_theta" in rope:
            return self._older_rope(key, rope)
        known = transformers_config(self)
        if hasattr(known, key):
            self._filled_in[key] = getattr(known, key)
            return _with_attributes(self._filled_in[key])
        raise AttributeError(f"{self.source} has no {key}: getattr(config, {key!r}, default) says what its absence means")

    def _older_rope(self, key: str, rope: dict[str, Any]) -> Any:
        """What an older config.json has under `rope_theta` and `rope_scaling`. A scaling counts as read only where it was asked for."""
        scaled = rope.get("rope_type", "default") != "default"
        if key == "rope_scaling" or not scaled:
            self._read.add("rope_parameters")
        if key == "rope_theta":
            return rope["rope_theta"]
        return Section({name: value for name, value in rope.items() if name != "rope_theta"}) if scaled else None

    @property
    def architecture(self) -> str:
        """The first of `architectures`, or ''."""
        names = self.values.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""

    @property
    def model_type(self) -> str:
        value = self.values.get("model_type")
        return value if isinstance(value, str) else ""

    def has(self, key: str) -> bool:
        """Is there a value other than null?"""
        return self.values.get(key) is not None

    def heed_task(self) -> str | None:
        """The task that the user asked for. One that no family heeds is refused."""
        self.task_heeded = True
        return self.task

    def positive_int(self, key: str, default: int = _ABSENT) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.wrong(key, "must be a positive whole number")
        return value

    def whole(self, key: str, default: int = _ABSENT) -> int:
        """A whole number that may be 0."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(key, "must be a whole number, 0 or more")
        return value

    def positive_float(self, key: str, default: float = _ABSENT) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.wrong(key, "must be a positive number")
        return float(value)

    def boolean(self, key: str, default: bool = _ABSENT) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, Any], default: str = _ABSENT) -> Any:
        """The value that `choices` gives for the key's text."""
        value = self._get(key, default)
        if value not in choices if isinstance(value, str) else True:
            raise self.wrong(key, f"is not supported; supported are {', '.join(sorted(choices))}")
        return choices[value]

    def positive_floats(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        values = self._get(key, _ABSENT)
        if not isinstance(values, list) or not values:
            raise self.wrong(key, "must be a list of positive numbers")
        each = ConfigReader({str(index): value for index, value in enumerate(values)}, f"{self.source}: {key}")
        return tuple(each.positive_float(index) for index in each.values)

    def positive_ints(self, key: str) -> tuple[int, ...]:
        """A list of positive whole numbers."""
        values = self._get(key, _ABSENT)
        if not isinstance(values, list) or not all(isinstance(value, int) and value > 0 for value in values):
            raise self.wrong(key, "must be a list of positive whole numbers")
        return tuple(values)

    def wholes(self, key: str, default: list[int] = _ABSENT) -> tuple[int, ...]:
        """A list of whole numbers, 0 or more."""
        values = self._get(key, default)
        if not isinstance(values, list) or not all(isinstance(value, int) and value >= 0 for value in values):
            raise self.wrong(key, "must be a list of whole numbers, 0 or more")
        return tuple(values)

    def optional_int(self, key: str, default: int | None) -> int | None:
        """A positive whole number; None where the key is there and null. `default` only where it is absent."""
        return None if self._is_none(key, default) else self.positive_int(key, default or _ABSENT)

    def optional_float(self, key: str, default: float | None) -> float | None:
        """A positive number; None where the key is there and null. `default` only where it is absent."""
        return None if self._is_none(key, default) else self.positive_float(key, default or _ABSENT)

    def _is_none(self, key: str, default: float | None) -> bool:
        self._read.add(key)
        return self.values.get(key, default) is None

    def strings(self, key: str, default: list[str] = _ABSENT) -> list[str]:
        values = self._get(key, default)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong(key, "must be a list of texts")
        return values

    def require(self, key: str, value: Any, default: Any = _ABSENT) -> None:
        """Read a key that only has one supported value."""
        if self._get(key, value if default is _ABSENT else default) != value:
            raise self.wrong(key, f"is not supported; {json.dumps(value)} is")

    def nested(self, key: str) -> "ConfigReader | None":
        """The object under `key`, or None where it is absent or null."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "must be an object")
        return ConfigReader(value, f"{self.source}: {key}")

    def skip(self, *keys: str) -> None:
        """Count keys as read: their values are known not to matter here."""
        self._read.update(keys)

    def heeds(self, key: str) -> bool:
        """Whether the key was read, or is known not to change numbers."""
        return key in self._read or key in INERT_KEYS

    def keys_read(self) -> list[str]:
        """All keys that were asked for, whether or not they are there."""
        return sorted(self._read)

    def unread(self, ignored: Iterable[str] = ()) -> str:
        """The keys, with their values, that were not read, are not inert, and are not in `ignored`; '' where there are none."""
        unread = sorted(key for key in self.values if self.has(key) and key not in self._read | INERT_KEYS | set(ignored))
        return ", ".join(f"{key} = {json.dumps(self.values[key])[:60]}" for key in unread)

    def finish(self, ignored: Iterable[str] = ()) -> None:
        """Raise ConfigError if a key is left that was not read, is not inert, and is not in `ignored`."""
        if listed := self.unread(ignored):
            raise ConfigError(
                f"{self.source} has keys that FlatLM does not know and that may change the model's numbers: {listed}. "
                "If one is known not to matter, pass --ignore-config-key KEY"
            )

    def filled_in(self) -> dict[str, Any]:
        """Keys that were asked for and are not there, with the values that were given for them, as far as JSON has such."""
        plain = (str, int, float, bool, list, dict, type(None))
        return {key: value for key, value in self._filled_in.items() if isinstance(value, plain)}

    def wrong(self, key: str, what: str) -> ConfigError:
        """The error for a key's value; `what` says what is allowed."""
        return ConfigError(f"{self.source}: {key} = {json.dumps(self.values.get(key))[:80]} {what}")

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _ABSENT:
            raise ConfigError(f"{self.source} has no {key}: it is needed")
        return default


def transformers_config(reader: ConfigReader) -> Any:
    """The configuration object that transformers makes of the values; an empty one where it is not installed or does not know the type."""
    if reader._known is None:
        reader._known = object()
        if find_spec("transformers") is not None and reader.model_type:
            from transformers import CONFIG_MAPPING

            if reader.model_type in CONFIG_MAPPING:
                with contextlib.suppress(Exception):  # values that the class refuses: it is the reader who says what is wrong
                    reader._known = CONFIG_MAPPING[reader.model_type].from_dict(dict(reader.values))
    return reader._known
