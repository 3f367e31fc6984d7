"""Parts of a config.json that encoders with a decoder share: tokens that frame a text, BART's layers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flatlm.errors import ConfigError
from flatlm.layers.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    NormConfig,
    NormKind,
    PositionEmbeddingConfig,
)
from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig, RelativeBiasConfig, StackConfig, WritingConfig
from flatlm.utilities.checkpoints.open import open_checkpoint, peek_tensors
from flatlm.utilities.configs.config_parts import ACTIVATIONS
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.json_file import read_json

BART_OFFSET = 2
"""Rows of the positions' table before that of position 0: fairseq's, whose padding had a position."""


def read_writing(hf_config: ConfigReader, model_path: Path, **defaults: int | None) -> WritingConfig:
    """From generation_config.json, else config.json, else the family's `defaults`, by the same keys. Raises ConfigError.

    Without a `decoder_start_token_id` texts begin with `bos_token_id`, as transformers has it.
    """
    generation = _generation_config(model_path)

    def ids(key: str) -> tuple[int, ...]:
        for values, source in ((generation, model_path / "generation_config.json"), (hf_config.values, hf_config.source)):
            value = values.get(key)
            if value is not None:
                found = value if isinstance(value, list) and value else [value]
                if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in found):
                    raise ConfigError(f"{source}: {key} = {json.dumps(value)[:80]} must be a token's id, or a list of them")
                return tuple(found)
        default = defaults.get(key)
        return () if default is None else (default,)

    def one(key: str) -> int | None:
        return next(iter(ids(key)), None)

    starts = [own for own in (one("decoder_start_token_id"), one("bos_token_id")) if own is not None]
    if not starts:
        raise ConfigError(
            f"{hf_config.source} has no decoder_start_token_id, nor has generation_config.json beside it: it is needed, "
            "since what the decoder writes begins with it"
        )
    pad = one("pad_token_id")
    return WritingConfig(starts[0], ids("eos_token_id"), pad or 0, one("forced_bos_token_id"), one("forced_eos_token_id"))


def _generation_config(model_path: Path) -> dict[str, Any]:
    """generation_config.json's object; an empty one where there is none."""
    path = model_path / "generation_config.json"
    return read_json(path, ConfigError) if path.is_file() else {}


def has_tensor(model_path: Path, *endings: str) -> bool:
    """Whether the checkpoint has a tensor whose name ends so, where config.json does not say it; a configuration by itself has none."""
    return any(name.endswith(endings) for name in peek_tensors(model_path) or ())


def read_bart(
    hf_config: ConfigReader, model_path: Path, *, norm_first: bool, wraps: bool = False, **defaults: int | None
) -> EncoderDecoderConfig:
    """BART and what has its layers. `norm_first`: norms lie before their branches, and at the end of each stack (mBART).

    `wraps`: as `WritingConfig` has it. `defaults`: of the tokens that frame a text.
    """
    dim = hf_config.positive_int("d_model")
    for key, value in (("normalize_before", norm_first), ("add_final_layer_norm", norm_first), ("normalize_embedding", True)):
        hf_config.require(key, value)
    for key in ("static_position_embeddings", "add_bias_logits"):
        hf_config.require(key, False)
    hf_config.require("extra_pos_embeddings", BART_OFFSET)
    hf_config.require("hidden_size", dim)
    hf_config.skip("dropout", "activation_dropout", "classifier_dropout", "classif_dropout", "encoder_layerdrop", "decoder_layerdrop")
    hf_config.skip("init_std", "gradient_checkpointing", "save_step", "force_bos_token_to_be_generated", "num_labels", "_num_labels")
    norm = NormConfig(NormKind.LAYER, 1e-5, bias=True)
    positions = hf_config.positive_int("max_position_embeddings", 1024)

    def stack(side: str) -> StackConfig:
        heads = hf_config.positive_int(f"{side}_attention_heads", 16)
        if dim % heads:
            raise hf_config.wrong(f"{side}_attention_heads", f"does not divide d_model = {dim}")
        attention = AttentionConfig(heads, heads, dim // heads, None, qkv_bias=True, output_bias=True)
        activation = hf_config.choice("activation_function", ACTIVATIONS, "gelu")
        feed_forward = FeedForwardConfig(hf_config.positive_int(f"{side}_ffn_dim", 4096), activation, gated=False, bias=True)
        block = BlockConfig(attention, feed_forward, norm, norm, norm_after=not norm_first)
        return StackConfig(
            (block,) * hf_config.positive_int(f"{side}_layers", 12),
            PositionEmbeddingConfig(positions + BART_OFFSET, BART_OFFSET),
            embedding_norm=norm,
            final_norm=norm if norm_first else None,
            max_positions=positions,
        )

    encoder, decoder = stack("encoder"), stack("decoder")
    hf_config.require("num_hidden_layers", len(encoder.blocks))
    hf_config.require("num_attention_heads", encoder.blocks[0].attention.num_query_heads)
    tied = hf_config.boolean("tie_word_embeddings", True)
    return EncoderDecoderConfig(
        vocab_size=hf_config.positive_int("vocab_size", 50265),
        embedding_dim=dim,
        encoder=encoder,
        decoder=decoder,
        cross=decoder.blocks[0].attention,
        cross_norm=norm,
        writing=replace(read_writing(hf_config, model_path, **defaults), wraps=wraps),
        tied_head=tied,
        shared_embedding=tied,
        logits_bias=has_tensor(model_path, "final_logits_bias"),
        embedding_scale=dim**0.5 if hf_config.boolean("scale_embedding", False) else 1.0,
    )


def is_gated(hf_config: ConfigReader, default: str = "relu") -> bool:
    """Whether `feed_forward_proj` says that the feed-forward is gated, as T5's configurations say it."""
    return str(hf_config.values.get("feed_forward_proj") or default).startswith("gated-")


T5_FEED_FORWARDS = {
    **{kind: (activation, False) for kind, activation in ACTIVATIONS.items()},
    **{f"gated-{kind}": (activation, True) for kind, activation in ACTIVATIONS.items()},
    "gated-gelu": (Activation.GELU_TANH, True),  # the one name that does not mean what it says
}
"""`feed_forward_proj`: the activation, and whether it gates."""


def read_t5(hf_config: ConfigReader, model_path: Path, *, scaled_head: bool, feed_forward: str, vocab_size: int) -> EncoderDecoderConfig:
    """T5 and what has its layers. `scaled_head`: what the head reads is multiplied by D^-1/2.

    `feed_forward`, `vocab_size`: the family's defaults. The head is tied unless the checkpoint has another one: config.json may say
    either of either.
    """
    dim, heads, width = (hf_config.positive_int(key, default) for key, default in (("d_model", 512), ("num_heads", 8), ("d_kv", 64)))
    layers = hf_config.positive_int("num_layers", 6)
    activation, gated = hf_config.choice("feed_forward_proj", T5_FEED_FORWARDS, feed_forward)
    hf_config.skip("dense_act_fn", "is_gated_act")  # what follows from it
    hf_config.skip(
        "dropout_rate", "classifier_dropout", "initializer_factor", "n_positions", "tie_word_embeddings", "gradient_checkpointing"
    )
    norm = NormConfig(NormKind.RMS, hf_config.positive_float("layer_norm_epsilon", 1e-6))
    attention = AttentionConfig(heads, heads, width, None, scale=1.0)
    block = BlockConfig(attention, FeedForwardConfig(hf_config.positive_int("d_ff", 2048), activation, gated), norm, norm)

    def stack(count: int, *, bidirectional: bool) -> StackConfig:
        buckets = hf_config.positive_int("relative_attention_num_buckets", 32)
        distance = hf_config.positive_int("relative_attention_max_distance", 128)
        if buckets < 4 or distance <= buckets // 2:
            raise hf_config.wrong(
                "relative_attention_num_buckets", "must be at least 4, and half of it below relative_attention_max_distance"
            )
        return StackConfig((block,) * count, relative_bias=RelativeBiasConfig(buckets, distance, bidirectional), final_norm=norm)

    return EncoderDecoderConfig(
        vocab_size=hf_config.positive_int("vocab_size", vocab_size),
        embedding_dim=dim,
        encoder=stack(layers, bidirectional=True),
        decoder=stack(hf_config.positive_int("num_decoder_layers", layers), bidirectional=False),
        cross=attention,
        cross_norm=norm,
        writing=read_writing(hf_config, model_path, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0),
        tied_head=not _has_its_own_head(hf_config, model_path),
        head_scale=dim**-0.5 if scaled_head else 1.0,
    )


def _has_its_own_head(hf_config: ConfigReader, model_path: Path) -> bool:
    """Whether the checkpoint has a head that differs from the embedding; some repeat the embedding there. By itself config.json says so."""
    if peek_tensors(model_path) is None:
        return hf_config.values.get("tie_word_embeddings") is False
    with open_checkpoint(model_path) as checkpoint:
        head, tables = checkpoint.tensors.get("lm_head.weight"), [name for name in T5_TABLES if name in checkpoint.tensors]
        if head is None or not tables:
            return False
        if checkpoint.tensors[tables[0]].shape != head.shape:
            return True
        starts = range(0, head.shape[0], HEAD_ROWS)  # the first rows of two different ones differ, so that little is read of them
        pairs = (
            [checkpoint.rows(name, start, min(start + HEAD_ROWS, head.shape[0])) for name in ("lm_head.weight", tables[0])]
            for start in starts
        )
        return not all(torch.equal(*pair) for pair in pairs)


T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
HEAD_ROWS = 1024
"""That are compared at once."""
