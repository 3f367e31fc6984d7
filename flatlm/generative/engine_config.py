"""How a checkpoint is exported when it is to be run, and how its file is run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType

from flatlm.errors import ConfigError
from flatlm.quantize.recipes import Recipe

RUNNING = ("threads", "enable_prefix_caching")
"""What an `EngineConfig` says of running a file; all else is about exporting it."""


@dataclass(frozen=True)
class EngineConfig:
    """How a checkpoint is exported, and its file run. None: the default that fits the model.

    With a file that is exported already, only the fields in RUNNING may be given.
    """

    recipe: str | Recipe = "dynamic_int8"
    """A recipe, the name of a built-in one, or a path that ends in .json."""
    kv_cache_len: int | tuple[int, ...] | None = None
    """The most tokens of a prompt and its answer together. Of several lengths, a text begins in the shortest, and moves on."""
    prefill_lengths: tuple[int, ...] | None = None
    custom_module_map: str | Path | None = None
    """A Python file whose MODULE_MAP names classes for architectures. It is run."""
    custom: str | Path | None = None
    """A Python file whose __model__ is the model. It is run."""
    family: str | None = None
    """The model's family, by the name that `flatlm models` lists."""
    ignored_config_keys: tuple[str, ...] = ()
    """Keys of config.json that are known not to matter."""
    kv_cache_dtype: str = "float32"
    verify_length: int | None = None
    """How many tokens of a draft are checked at once; None: none are, and no signature is for that."""
    verify: bool = True
    """Prove the exported file against the checkpoint before it is kept."""
    threads: int | None = None
    """None: one for each core."""
    enable_prefix_caching: bool = False
    """Read what a prompt has in common with the last text once. Answers may then differ in the last digits of their probabilities."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a field of another type."""
        for field in fields(self):
            wanted, what = _WANTED[field.name]
            value = getattr(self, field.name)
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                raise ConfigError(f"{field.name} = {value!r} must be {what}")
        for name in ("kv_cache_len", "prefill_lengths"):
            lengths = getattr(self, name)
            if isinstance(lengths, tuple | list) and not all(type(length) is int for length in lengths):
                raise ConfigError(f"{name} = {lengths!r} must be whole numbers, such as (128, 512)")


_NUMBER = ((int, NoneType), "a whole number, or None")
_FILE = ((str, Path, NoneType), "the path of a Python file, or None")
_SWITCH = ((bool,), "True or False")
_WANTED: Mapping[str, tuple[tuple[type, ...], str]] = {
    "recipe": ((str, Recipe), "the name of a recipe, its file, or a Recipe"),
    "kv_cache_len": ((int, tuple, list, NoneType), "a whole number, or None, or a tuple of such"),
    "prefill_lengths": ((tuple, list, NoneType), "a tuple of whole numbers, such as (128, 512), or None"),
    "custom_module_map": _FILE,
    "custom": _FILE,
    "family": ((str, NoneType), "the name of a family, or None"),
    "ignored_config_keys": ((tuple, list), "a tuple of keys of config.json"),
    "kv_cache_dtype": ((str,), "the name of a type, such as 'float32'"),
    "verify_length": _NUMBER,
    "verify": _SWITCH,
    "threads": _NUMBER,
    "enable_prefix_caching": _SWITCH,
}
"""The types of an EngineConfig's fields, and what they are in words."""
