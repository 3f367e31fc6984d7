"""Configurations of models from outside: what a builder may say of them, and what an export knows of an author's module."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flatlm.authoring.module_map import ModuleReference
from flatlm.errors import ConfigError
from flatlm.layers.config import AttentionConfig, RopeConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder

__all__ = ["AuthoredConfig", "AutoModelConfigBuilder", "ConfigBuilder", "DefaultModelConfigBuilder", "ModelConfig"]


@dataclass(frozen=True)
class ModelConfig:
    """What lmdeploy's builders give: the sizes of a model whose class is in a module map.

    An export needs `vocab_size` and `max_positions` (None: `max_position_embeddings`); where the class says otherwise, that is an error.
    """

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    bos_token_id: Any = None
    eos_token_id: Any = None
    head_dim: int | None = None
    vocab_size: int | None = None
    sliding_window: int | None = None
    max_positions: int | None = None


AutoModelConfigBuilder = ConfigBuilder
"""lmdeploy's name for it."""


class DefaultModelConfigBuilder(ConfigBuilder, registered=False):
    """From the keys that transformers' decoders share, for classes that no other builder speaks for."""

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return True

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path | None = None) -> ModelConfig:
        heads = hf_config.positive_int("num_attention_heads")
        return ModelConfig(
            hidden_size=hf_config.positive_int("hidden_size"),
            num_layers=hf_config.positive_int("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=hf_config.positive_int("num_key_value_heads", heads),
            bos_token_id=hf_config.values.get("bos_token_id"),
            eos_token_id=hf_config.values.get("eos_token_id"),
            head_dim=hf_config.values.get("head_dim"),
            vocab_size=hf_config.positive_int("vocab_size"),
        )


@dataclass(frozen=True)
class AuthoredLayer:
    """A layer as its cache sees it."""

    attention: AttentionConfig


@dataclass(frozen=True)
class AuthoredConfig:
    """An author's module, as data: its class, what the class is given, and what a trial run has told of it.

    `values`: config.json as text; `names`: what the file calls a parameter, where that is not the author's own name.
    """

    reference: ModuleReference
    values: str
    source: str
    vocab_size: int
    embedding_dim: int
    max_positions: int
    attentions: tuple[AttentionConfig, ...]
    tied_head: bool
    names: tuple[tuple[str, str], ...]

    @property
    def blocks(self) -> tuple[AuthoredLayer, ...]:
        """The layers, in the order of past_key_values."""
        return tuple(AuthoredLayer(attention) for attention in self.attentions)

    @property
    def block_kinds(self) -> tuple[AuthoredLayer, ...]:
        """The distinct ones."""
        return tuple(dict.fromkeys(self.blocks))

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """None that FlatLM knows of: the module turns its queries and keys itself."""
        return ()


def require_sizes(said: Any, hf_config: ConfigReader, found: dict[str, int]) -> None:
    """ConfigError where what a builder said of a model is not what its class built, such as another number of layers."""
    for field in fields(said):
        given = getattr(said, field.name)
        if field.name in found and given is not None and given != found[field.name]:
            raise ConfigError(f"{hf_config.source}: the ConfigBuilder says {field.name} = {given}, the module has {found[field.name]}")
