"""Who builds a checkpoint's configuration, if not one of FlatLM's families: a class in a module map, or a builder that was registered."""

import difflib
from pathlib import Path
from typing import Any

from flatlm.authoring.author_code import prints_aside
from flatlm.authoring.config import ModelConfig as SizesOnly
from flatlm.authoring.module_map import ModuleReference, find_module, known_architectures, load_outside
from flatlm.authoring.user_code import PREFIX, load_file
from flatlm.errors import ConfigError, FlatlmError
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.kinds.table import KINDS
from flatlm.utilities.weights.tensor_names import TensorNames


def find(hf_config: ConfigReader, module_map: Path | None) -> type[ConfigBuilder] | None:
    """The builder from outside that takes a configuration; None where there is none.

    A class in a module map goes before a re-authored family; the first builder whose condition holds says what its configuration is.
    Raises ConfigError where a file was named and has nothing for the architecture.
    """
    with prints_aside():
        load_outside(module_map)
        builder = _registered(hf_config, module_map)
        reference = find_module(hf_config.architecture, module_map)
    if reference is not None:
        return _authored(reference, hf_config.architecture, None if builder is None else _guarded(builder))
    if builder is not None and not hasattr(builder, "tensor_names"):
        raise ConfigError(
            f"{builder.__module__}.{builder.__name__} takes {hf_config.source} and has no tensor_names, and no module map has a class for "
            f"the architecture {hf_config.architecture!r}: set tensor_names (a model made of FlatLM's blocks), or map a class"
        )
    if builder is None and module_map is not None:
        known = known_architectures(module_map)
        close = difflib.get_close_matches(hf_config.architecture, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known) or 'none'}"
        raise ConfigError(
            f"{module_map} has no class for the architecture {hf_config.architecture!r} of {hf_config.source}, and no ConfigBuilder that "
            f"takes it: {hint}"
        )
    return None if builder is None else _guarded(builder)


def outside_code(hf_config: ConfigReader, module_map: Path | None) -> list[type]:
    """The classes from outside that say what `find` gives: the builder, the mapped class. Raises ConfigError."""
    load_outside(module_map)
    builder, reference = _registered(hf_config, module_map), find_module(hf_config.architecture, module_map)
    return [each for each in (builder, None if reference is None else reference.resolve()) if each is not None]


def _authored(reference: ModuleReference, architecture: str, builder: type[ConfigBuilder] | None) -> type[ConfigBuilder]:
    """What builds the configuration of a class in a module map."""

    class Authored(ConfigBuilder, registered=False):
        family = f"{architecture} (module map)"
        tensor_names = TensorNames("", "")

        @classmethod
        def build(cls, hf_config: ConfigReader, model_path: Path) -> Any:
            from flatlm.authoring.authored import author

            return author(reference, hf_config, model_path, builder)

    return Authored


def _guarded(builder: type[ConfigBuilder]) -> type[ConfigBuilder]:
    """The builder, whose `build` raises ConfigError for whatever goes wrong in it, and for what is no configuration."""

    class Guarded(builder, registered=False):  # type: ignore[valid-type, misc, call-arg]
        @classmethod
        def build(cls, hf_config: ConfigReader, model_path: Path) -> Any:
            name = f"{builder.__module__}.{builder.__name__}.build"
            try:
                with prints_aside():
                    config = builder.build(hf_config, model_path)
            except FlatlmError:
                raise
            except (Exception, SystemExit) as error:  # whatever an author's code raises
                raise ConfigError(f"{name} failed on {hf_config.source}: {type(error).__name__}: {error}") from error
            whole = type(config).__name__ in KINDS and not isinstance(config, SizesOnly)
            if not (whole if hasattr(builder, "tensor_names") else isinstance(config, SizesOnly)):
                raise ConfigError(
                    f"{name} gave a {type(config).__module__}.{type(config).__name__} for {hf_config.source}: a builder that has "
                    "tensor_names gives a flatlm.layers.config.ModelConfig; one that goes with a class in a module map has none, and gives "
                    "a flatlm.authoring.config.ModelConfig"
                )
            return config

    return Guarded


def _registered(hf_config: ConfigReader, module_map: Path | None) -> type[ConfigBuilder] | None:
    """The first that takes it. Builders of a user's file count where that file is named."""
    own = "" if module_map is None else load_file(module_map).__name__
    for builder in ConfigBuilder._builders:
        if not builder.from_outside() or (builder.__module__.startswith(PREFIX) and builder.__module__ != own):
            continue
        try:
            if builder.condition(ConfigReader(hf_config.values, hf_config.source)):  # what it looks at does not count as read
                return builder
        except AttributeError as error:  # a key that this checkpoint's config.json does not have
            raise ConfigError(
                f"{builder.__module__}.{builder.__name__}.condition cannot be asked about {hf_config.source}: {error}"
            ) from error
        except FlatlmError:
            raise
        except (Exception, SystemExit) as error:  # whatever an author's code raises
            raise ConfigError(
                f"{builder.__module__}.{builder.__name__}.condition failed on {hf_config.source}: {type(error).__name__}: {error}"
            ) from error
    return None
