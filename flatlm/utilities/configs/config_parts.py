"""Parts of a config.json that many families share: heads, rotary embedding, windows, activations."""

import math
from dataclasses import dataclass
from typing import Any

from flatlm.layers.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from flatlm.utilities.configs.config_reader import ConfigReader

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}
"""transformers' names in `hidden_act`."""


@dataclass(frozen=True)
class Heads:
    """The widths of attention: D, N, K, H."""

    dim: int
    query: int
    key_value: int
    width: int

    def attention(self, rope: RopeConfig | None, *, bias: bool = False, **more: Any) -> AttentionConfig:
        """Attention of these widths. `bias`: of all its projections; `more`: the other fields of an AttentionConfig."""
        return AttentionConfig(self.query, self.key_value, self.width, rope, **{"qkv_bias": bias, "output_bias": bias, **more})


def read_heads(hf_config: ConfigReader, *, default_width: int | None = None) -> Heads:
    """`hidden_size`, `num_attention_heads`, `num_key_value_heads` (as many), `head_dim` (`default_width`, or hidden_size shared out).

    Raises ConfigError.
    """
    dim, heads = hf_config.positive_int("hidden_size"), hf_config.positive_int("num_attention_heads")
    kv_heads = hf_config.positive_int("num_key_value_heads", heads)
    if heads % kv_heads:
        raise hf_config.wrong("num_key_value_heads", f"does not divide num_attention_heads = {heads}")
    if not hf_config.has("head_dim") and default_width is None and dim % heads:
        raise hf_config.wrong("hidden_size", f"is not a multiple of num_attention_heads = {heads}, and there is no head_dim")
    width = hf_config.positive_int("head_dim", default_width or dim // heads)
    if width % 2:
        raise hf_config.wrong("head_dim", "must be even: rotary embedding turns pairs")
    return Heads(dim, heads, kv_heads, width)


def read_rope(
    hf_config: ConfigReader, head_dim: int, *, base: float = 10000.0, partial: float = 1.0, layer_type: str | None = None
) -> RopeConfig:
    """Base, scaling and turning entries from `rope_parameters`, or from `rope_theta`, `rope_scaling` and `partial_rotary_factor`.

    `base` and `partial`: the family's defaults. `layer_type`: the key under which `rope_parameters` keeps those of a kind of layer.
    """
    base = hf_config.positive_float("rope_theta", base)
    partial = hf_config.positive_float("partial_rotary_factor", partial)
    scaling = hf_config.nested("rope_parameters") or hf_config.nested("rope_scaling")
    hf_config.skip("rope_parameters", "rope_scaling")
    if scaling is not None and layer_type is not None and scaling.has(layer_type):
        scaling = scaling.nested(layer_type)
    if scaling is None:
        return _rope(hf_config, head_dim, base, None, partial)
    base, partial = scaling.positive_float("rope_theta", base), scaling.positive_float("partial_rotary_factor", partial)
    kind = "rope_type" if scaling.has("rope_type") else "type"
    read = scaling.choice(kind, SCALINGS, "default")
    rope = _rope(scaling, head_dim, base, read(scaling, hf_config), partial)
    if isinstance(rope.scaling, LongRopeScaling) and (rope.rotary_dim or head_dim) != 2 * len(rope.scaling.short_factors):
        raise scaling.wrong("short_factor", f"must have {(rope.rotary_dim or head_dim) // 2} numbers, one for each pair that turns")
    scaling.skip("type", "rope_type")
    scaling.finish()
    return rope


def positions_unscaled(hf_config: ConfigReader) -> int | None:
    """As many positions as dynamic NTK changes nothing in: `max_position_embeddings`. None for any other rotary embedding."""
    scaling = hf_config.nested("rope_parameters") or hf_config.nested("rope_scaling")
    if scaling is None or SCALINGS.get(scaling.values.get("rope_type", scaling.values.get("type"))) is not _dynamic:
        return None
    return hf_config.positive_int("max_position_embeddings", 2048)


def read_ropes(hf_config: ConfigReader, head_dim: int, *, base: float, window_base: float | None = None) -> tuple[RopeConfig, RopeConfig]:
    """The rotary embeddings of layers that see everything, and of those that see a window.

    From `rope_parameters`, which has one for each kind of layer; or, in the old form, from `rope_theta` and `rope_scaling` for the first,
    and for the second `window_base` (None: the first one's), unscaled.
    """
    kinds = ("full_attention", "sliding_attention")
    parameters = hf_config.nested("rope_parameters")
    if parameters is not None:
        if not all(map(parameters.has, kinds)):
            raise hf_config.wrong("rope_parameters", f"must have {' and '.join(kinds)}")
        parameters.skip(*kinds)
        parameters.finish()
    whole = read_rope(hf_config, head_dim, base=base, layer_type=kinds[0])
    if parameters is None:
        return whole, RopeConfig(head_dim, whole.base if window_base is None else window_base)
    return whole, read_rope(hf_config, head_dim, base=base, layer_type=kinds[1])


def _rope(reader: ConfigReader, head_dim: int, base: float, scaling: RopeScaling | None, partial: float) -> RopeConfig:
    turning = int(head_dim * partial)
    if not 0 < turning <= head_dim or turning % 2:
        raise reader.wrong("partial_rotary_factor", f"makes {turning} of a head's {head_dim} entries turn; that must be even")
    return RopeConfig(head_dim, base, scaling, None if turning == head_dim else turning)


def _unscaled(scaling: ConfigReader, _: ConfigReader) -> None:
    scaling.skip("factor")  # some writers leave it at 1


def _dynamic(scaling: ConfigReader, _: ConfigReader) -> None:
    """Dynamic NTK changes nothing up to `max_position_embeddings`, which is as far as an exported context goes."""
    scaling.skip("factor", "original_max_position_embeddings")


def _linear(scaling: ConfigReader, _: ConfigReader) -> RopeScaling:
    return LinearScaling(scaling.positive_float("factor"))


def _llama3(scaling: ConfigReader, _: ConfigReader) -> RopeScaling:
    low, high = scaling.positive_float("low_freq_factor"), scaling.positive_float("high_freq_factor")
    if low >= high:
        raise scaling.wrong("low_freq_factor", f"must be below high_freq_factor = {high}")
    return Llama3Scaling(scaling.positive_float("factor"), low, high, scaling.positive_int("original_max_position_embeddings"))


def _yarn(scaling: ConfigReader, model: ConfigReader) -> RopeScaling:
    longest = model.positive_int("max_position_embeddings", 2048)
    original = scaling.positive_int("original_max_position_embeddings", longest)
    factor = scaling.positive_float("factor", longest / original)
    attention = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    if scaling.has("mscale") and scaling.has("mscale_all_dim"):
        first, second = (
            1.0 if factor <= 1 else 0.1 * scaling.positive_float(key) * math.log(factor) + 1.0 for key in ("mscale", "mscale_all_dim")
        )
        attention = first / second
    scaling.skip("mscale", "mscale_all_dim")  # one without the other counts for nothing
    return YarnScaling(
        factor,
        original,
        scaling.positive_float("attention_factor", attention),
        scaling.positive_float("beta_fast", 32.0),
        scaling.positive_float("beta_slow", 1.0),
        scaling.boolean("truncate", True),
    )


def _longrope(scaling: ConfigReader, model: ConfigReader) -> RopeScaling:
    longest = model.positive_int("max_position_embeddings")
    original = model.positive_int("original_max_position_embeddings", longest)  # Phi keeps it outside
    original = scaling.positive_int("original_max_position_embeddings", original)
    factor = scaling.positive_float("factor", longest / original)
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = scaling.positive_floats("short_factor"), scaling.positive_floats("long_factor")
    if len(short) != len(long):
        raise scaling.wrong("long_factor", f"has {len(long)} numbers, short_factor {len(short)}")
    return LongRopeScaling(short, long, original, scaling.positive_float("attention_factor", attention))


SCALINGS = {
    "default": _unscaled,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}
"""How `rope_type` is read: the rest of its object, with the model's own configuration at hand."""


def read_layer_types(hf_config: ConfigReader, layers: int, default: list[str]) -> list[bool]:
    """For each layer, whether it sees a window only, from `layer_types` (or the family's default, for so many layers)."""
    types = hf_config.strings("layer_types", default)
    if len(types) != layers or not set(types) <= {"sliding_attention", "full_attention"}:
        raise hf_config.wrong("layer_types", f"must name sliding_attention or full_attention for each of {layers} layers")
    return [kind == "sliding_attention" for kind in types]


def read_windows(hf_config: ConfigReader, layers: int, *, pattern: int) -> list[int | None]:
    """Each layer's window: from `sliding_window` and `layer_types`, or on all but the last of each `pattern` layers."""
    default = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)]
    local = read_layer_types(hf_config, layers, default)
    window = hf_config.optional_int("sliding_window", 4096)
    if any(local) and window is None:
        raise hf_config.wrong("sliding_window", "is needed: some layers see a window only")
    return [window if own else None for own in local]


def read_qwen_windows(hf_config: ConfigReader, layers: int) -> list[int | None]:
    """Each layer's window, from `use_sliding_window`, `sliding_window`, `max_window_layers` and `layer_types`."""
    used = hf_config.boolean("use_sliding_window", False)
    window = hf_config.positive_int("sliding_window", 4096)
    first = hf_config.whole("max_window_layers", 28)
    default = ["sliding_attention" if used and layer >= first else "full_attention" for layer in range(layers)]
    return [window if local and used else None for local in read_layer_types(hf_config, layers, default)]


def read_feed_forward(
    hf_config: ConfigReader,
    *,
    width: str = "intermediate_size",
    activation: str = "hidden_act",
    default: str = "silu",
    gated: bool = True,
    bias: bool = False,
) -> FeedForwardConfig:
    """A feed-forward of the widths and activation under these keys; `default`: the activation where there is none."""
    return FeedForwardConfig(hf_config.positive_int(width), hf_config.choice(activation, ACTIVATIONS, default), gated, bias)


def read_model(
    hf_config: ConfigReader,
    blocks: tuple[BlockConfig, ...],
    norm: NormConfig,
    *,
    max_positions: int,
    vocab_size: int | None = None,
    tied: bool = False,
    **more: Any,
) -> ModelConfig:
    """The model around its blocks, from the keys that most families share.

    `norm`: the final one. `max_positions`, `vocab_size` (None: it must be there) and `tied`: what the family means where a key is absent.
    `more`: the other fields of a ModelConfig.
    """
    return ModelConfig(
        vocab_size=hf_config.positive_int("vocab_size") if vocab_size is None else hf_config.positive_int("vocab_size", vocab_size),
        embedding_dim=hf_config.positive_int("hidden_size"),
        blocks=blocks,
        max_positions=hf_config.positive_int("max_position_embeddings", max_positions),
        final_norm=norm,
        tied_head=hf_config.boolean("tie_word_embeddings", tied),
        **more,
    )
