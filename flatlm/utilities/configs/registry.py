"""Who builds a checkpoint's configuration. A family's module is imported when a checkpoint asks for it."""

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flatlm.errors import ConfigError
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.families import FAMILIES, family_record
from flatlm.utilities.reading import AS_IT_SAYS, Reading

if TYPE_CHECKING:
    from flatlm.utilities.weights.tensor_names import TensorNames


CUSTOM_FILES = "flatlm.authoring.custom_file"
"""What reads a model from a file that the user has named: it lies above, and is imported when there is such a file."""

_NO_GENERATOR = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""How the architectures end of models that do not generate text; GPT2LMHeadModel and its like do."""


class ConfigBuilder:
    """Builds a model's configuration from a checkpoint's config.json. Subclasses register themselves; the first whose `condition` holds
    builds: those from outside the package in their order, then the families.

    `tensor_names`: where the checkpoint has the weights of FlatLM's blocks. A builder from outside without them goes with a class in
    the module map (`authoring/module_map.py`), and gives an `authoring.config.ModelConfig`.
    """

    family: ClassVar[str]
    tensor_names: ClassVar["TensorNames"]
    _builders: ClassVar[list[type["ConfigBuilder"]]] = []

    def __init_subclass__(cls, *, registered: bool = True) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "family"):
            cls.family = cls.__name__
        if registered:
            ConfigBuilder._builders.append(cls)

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        """Is this configuration of the family?"""
        if cls.from_outside():
            raise ConfigError(f"{cls.__module__}.{cls.__name__} has no condition: define condition(cls, hf_config) as a classmethod")
        return family_record(cls.family).means(hf_config)

    @classmethod
    def from_outside(cls) -> bool:
        """Is it none of FlatLM's own?"""
        return not cls.__module__.startswith("flatlm.")

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> Any:
        """The model's configuration, of a type that `kinds/table.py` knows; every key that matters is read from `hf_config`.

        Raises ConfigError.
        """
        raise TypeError(f"{cls.__name__} has no build method")


OUTSIDE = "flatlm.authoring.outside"
"""Where models from outside the package are looked for: `find(hf_config, module_map)` gives a builder, or None."""


def find_builder(hf_config: ConfigReader, *, family: str | None = None, module_map: Path | None = None) -> type[ConfigBuilder]:
    """The builder for a configuration: the named family's, else one from outside, else the first whose condition holds.

    `module_map`: a file that the user has named, which is run. Raises ConfigError.
    """
    if family is None:
        outside: type[ConfigBuilder] | None = importlib.import_module(OUTSIDE).find(hf_config, module_map)
        if outside is not None:
            return outside
    for record in FAMILIES:
        if record.name == family or (family is None and record.means(hf_config)):
            importlib.import_module(record.module)
    if family is not None:
        family_record(family)
    possible = [builder for builder in ConfigBuilder._builders if family in (None, builder.family) and not builder.from_outside()]
    for builder in possible:
        if builder.condition(hf_config):
            return builder
    if family is not None:
        return possible[0]
    raise _not_supported(hf_config)


def _not_supported(hf_config: ConfigReader) -> ConfigError:
    """Why no builder takes a configuration."""
    architecture = hf_config.architecture
    known = sorted(name for record in FAMILIES for name in record.architectures)
    problem = f"{hf_config.source}: architecture {architecture or hf_config.model_type or 'unnamed'!r}"
    if architecture in known:
        return ConfigError(f"{problem} is supported, but not in the form that the other keys describe")
    headless = architecture.endswith(_NO_GENERATOR) and "LMHead" not in architecture
    if headless or hf_config.values.get("is_encoder_decoder") is True:
        encoders = [record.name for record in FAMILIES if any(name.endswith("ForMaskedLM") for name in record.architectures)]
        return ConfigError(
            f"{problem} is not supported: of encoders the families {', '.join(encoders)} are, of other models those for text generation "
            "that flatlm models lists. Where it is built as one of them, name that one: --model FAMILY"
        )
    if not architecture and hf_config.model_type in {record.name for record in FAMILIES}:
        return ConfigError(f"{problem} names no architecture: add --model {hf_config.model_type} to read it as one of that family")
    close = difflib.get_close_matches(architecture, known, 1, 0.8)
    hint = f"did you mean {close[0]}?" if close else f"supported are {', '.join(known)} (flatlm models lists them)"
    return ConfigError(f"{problem} is not supported; {hint}")


def build_config(directory: Path, reading: Reading = AS_IT_SAYS) -> tuple[Any, type[ConfigBuilder]]:
    """Read a checkpoint's config.json into the model's configuration, and say which builder did. Raises ConfigError."""
    return config_from(ConfigReader.from_directory(directory), directory, reading)


def config_from(reader: ConfigReader, directory: Path, reading: Reading = AS_IT_SAYS) -> tuple[Any, type[ConfigBuilder]]:
    """The same, of values that were read already. Raises ConfigError."""
    reader.task = reading.task
    if reading.custom is not None:
        _require_alone(reading)
        builder = importlib.import_module(CUSTOM_FILES).custom_builder(reading.custom)
    else:
        builder = find_builder(reader, family=reading.family, module_map=reading.module_map)
    config = builder.build(reader, directory)
    if reading.task is not None and not reader.task_heeded:
        raise ConfigError(f"--task {reading.task}: models of the family {builder.family} have no choice of heads: leave it out")
    reader.skip("quantization_config")  # read, or refused, where the checkpoint is opened
    reader.finish(reading.ignored_config_keys)
    return config, builder


def _require_alone(reading: Reading) -> None:
    """ConfigError where beside a custom file there is something else that says what the model is."""
    others = {f"--model {reading.family}": reading.family, f"--module-map {reading.module_map}": reading.module_map}
    for option, given in others.items():
        if given is not None:
            raise ConfigError(f"--custom {reading.custom} says what the model is, and so does {option}: leave one of them out")
