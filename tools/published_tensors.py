"""Which tensors the published checkpoints have: from transformers' classes on the meta device, under the names that the hub has."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

Shapes = Mapping[str, tuple[int, ...]]

OTHER_TOWERS = ("vision_tower.", "multi_modal_projector.")


def hub_forms(config: Mapping[str, Any]) -> dict[str, Shapes]:
    """The tensors of a published config.json's checkpoint, once for each form in which people find it. None is in memory.

    "published" is the first; "tied_head_stored" has the tied head beside the embedding.
    """
    if config["model_type"] == "openelm":
        return {"published": openelm_shapes(config)}
    reference = meta_model(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(reference, reference.state_dict()).items()}
    if not reference.config.tie_word_embeddings:
        return {"published": shapes | old_buffers(config)}
    head = next(name for name in shapes if name.endswith("lm_head.weight"))
    shapes = {name: shape for name, shape in shapes.items() if name != head} | old_buffers(config)
    forms = {"published": shapes, "tied_head_stored": shapes | {head: shapes_of_embedding(shapes)}}
    for old in OLD_PREFIXES.get(config["model_type"], ()):
        forms |= {f"{form} {old[1]!r}": renamed(tensors, *old) for form, tensors in list(forms.items())}
    return forms


OLD_PREFIXES = {
    "gpt2": (("transformer.", ""),),
    "opt": (("model.decoder.", "decoder."),),
    "gemma3": (("vision_tower.", "vision_tower.vision_model."),),
}
"""Saved by a model without its head, or by older classes: (as now, as then)."""


def renamed(shapes: Shapes, now: str, then: str) -> Shapes:
    return {then + name.removeprefix(now) if name.startswith(now) else name: shape for name, shape in shapes.items()}


def shapes_of_embedding(shapes: Shapes) -> tuple[int, ...]:
    return next(shape for name, shape in shapes.items() if name.endswith(("embed_tokens.weight", "word_embeddings.weight", "wte.weight")))


def meta_model(config: Mapping[str, Any]) -> Any:
    """The reference's own model of a config.json, on the meta device."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
        read = transformers.AutoConfig.from_pretrained(folder)
    multimodal = "ForConditionalGeneration" in config["architectures"][0]
    auto = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(read)


def old_buffers(config: Mapping[str, Any]) -> Shapes:
    """What older classes saved beside their parameters: masks, and the frequencies of rope."""
    if config["model_type"] == "gpt2":
        longest = config["n_positions"]
        return {f"transformer.h.{layer}.attn.bias": (1, 1, longest, longest) for layer in range(config["n_layer"])}
    if config["model_type"] == "gpt_neox":
        longest, layers = config["max_position_embeddings"], range(config["num_hidden_layers"])
        turning = int(config["hidden_size"] // config["num_attention_heads"] * config["rotary_pct"])
        kinds = {"bias": (1, 1, longest, longest), "masked_bias": (), "rotary_emb.inv_freq": (turning // 2,)}
        return {f"gpt_neox.layers.{layer}.attention.{name}": shape for layer in layers for name, shape in kinds.items()}
    return {}


def openelm_shapes(config: Mapping[str, Any]) -> Shapes:
    """OpenELM's tensors; transformers has no class for it, so this follows its published description."""
    width, head, step = config["model_dim"], config["head_dim"], config["ffn_dim_divisor"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.token_embeddings.weight": (config["vocab_size"], width)}
    for layer in range(config["num_transformer_layers"]):
        queries, keys = config["num_query_heads"][layer] * head, config["num_kv_heads"][layer] * head
        wanted = config["ffn_multipliers"][layer] * width
        hidden = max(step, int(wanted + step / 2) // step * step)
        hidden += step if hidden < 0.9 * wanted else 0
        own = {
            "attn.qkv_proj": (queries + 2 * keys, width),
            "attn.q_norm": (head,),
            "attn.k_norm": (head,),
            "attn.out_proj": (width, queries),
            "attn_norm": (width,),
            "ffn.proj_1": (2 * hidden, width),
            "ffn.proj_2": (width, hidden),
            "ffn_norm": (width,),
        }
        shapes |= {f"transformer.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return shapes | {"transformer.norm.weight": (width,)}
