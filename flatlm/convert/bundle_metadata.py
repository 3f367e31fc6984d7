"""What LiteRT-LM reads beside the model (its LlmMetadata message), and FlatLM's manifest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flatlm.errors import ExportError, RuntimeFileError

_NO_STOP_TOKEN = -1
"""LiteRT-LM refuses to run without a stop token. No model emits this one."""
_UNLIMITED_TOP_K = 2**31 - 1
"""LiteRT-LM wants a positive k and lowers it to the vocabulary's size."""


@dataclass(frozen=True)
class BundleSampler:
    """How LiteRT-LM samples where its caller does not say: by default the largest logit, which is top_k 1."""

    top_k: int = 1
    top_p: float = 1.0
    temperature: float = 1.0
    seed: int = 0

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> "BundleSampler":
        """As transformers would sample with this generation_config.json: greedy unless it says do_sample."""
        temperature = config.get("temperature", 1.0)
        if not config.get("do_sample") or temperature == 0:
            return cls()
        top_k, top_p = config.get("top_k", 50), config.get("top_p")
        return cls(top_k or _UNLIMITED_TOP_K, 1.0 if top_p is None else top_p, 1.0 if temperature is None else temperature)


@dataclass(frozen=True)
class BundleMetadata:
    """`manifest` is FlatLM's own; the rest is for LiteRT-LM, whose behaviour the fields' notes tell (0.18.1)."""

    max_num_tokens: int
    """S, the cache's slots: prompt and answer together. LiteRT-LM stops there, and at the cache's own length if that is less."""
    stop_token_ids: tuple[int, ...] = ()
    """Any of them ends the answer, and is not shown."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end the answer likewise; LiteRT-LM tokenizes them, and looks for those ids."""
    start_token_id: int | None = None
    """Put before a conversation's first text, and the only special token that LiteRT-LM adds: it ignores the tokenizer's
    post-processor. With a chat template it is None: there the template writes BOS itself, in every turn that has one."""
    chat_template: str | None = None
    """Jinja for LiteRT-LM, from `bundle_template.for_litert_lm`; None for a model that continues plain text."""
    sampler: BundleSampler = BundleSampler()
    model_type: str = "generic_model"
    """A field of LlmModelType, such as "qwen3" or "gemma3": how tool calls and images are parsed, and a default chat template."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Any JSON object."""


def pack_metadata(metadata: BundleMetadata) -> bytes:
    """The serialized LlmMetadata, the same bytes for the same metadata; ExportError for what LiteRT-LM would refuse."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    if metadata.max_num_tokens < 1:
        raise ExportError(f"max_num_tokens is {metadata.max_num_tokens}: give the cache's length")
    proto = llm_metadata_pb2.LlmMetadata(max_num_tokens=metadata.max_num_tokens)
    if metadata.start_token_id is not None:  # an empty start_token aborts LiteRT-LM
        proto.start_token.token_ids.ids.append(metadata.start_token_id)
    stop_token_ids = metadata.stop_token_ids if metadata.stop_token_ids or metadata.stop_strings else (_NO_STOP_TOKEN,)
    for token in stop_token_ids:
        proto.stop_tokens.add().token_ids.ids.append(token)
    for text in metadata.stop_strings:
        proto.stop_tokens.add().token_str = text
    if metadata.chat_template is not None:
        proto.jinja_prompt_template = metadata.chat_template
    sampler = metadata.sampler
    if sampler.top_k < 1:
        raise ExportError(f"the sampler's top_k is {sampler.top_k}: LiteRT-LM needs at least 1, which is greedy")
    # TOP_P is the only type that LiteRT-LM's sampler for CPUs implements: GREEDY and TOP_K fail at the first token.
    proto.sampler_params.type = sampler_params_pb2.SamplerParameters.TOP_P
    proto.sampler_params.k = sampler.top_k
    proto.sampler_params.p = sampler.top_p
    proto.sampler_params.temperature = sampler.temperature
    proto.sampler_params.seed = sampler.seed
    # Left out, the type is guessed from the text of token 105.
    types = proto.llm_model_type.DESCRIPTOR.fields_by_name
    if metadata.model_type not in types:
        raise ExportError(f"{metadata.model_type!r} is no model type of LiteRT-LM's: it has {', '.join(sorted(types))}")
    getattr(proto.llm_model_type, metadata.model_type).SetInParent()
    return bytes(proto.SerializeToString(deterministic=True))


def unpack_metadata(data: bytes, manifest: bytes, name: str) -> BundleMetadata:
    """The metadata of the bundle called `name`; RuntimeFileError where it cannot be decoded."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    try:
        proto = llm_metadata_pb2.LlmMetadata.FromString(data)
        parsed = json.loads(manifest)
    except (DecodeError, ValueError) as error:
        raise RuntimeFileError(f"{name} is corrupt: its metadata cannot be decoded ({error})") from error
    if not isinstance(parsed, dict):
        raise RuntimeFileError(f"{name} is corrupt: its manifest is no JSON object")
    stop_ids = [tuple(token.token_ids.ids) for token in proto.stop_tokens if token.HasField("token_ids")]
    start_ids = tuple(proto.start_token.token_ids.ids)
    if proto.start_token.HasField("token_str") or len(start_ids) > 1 or any(len(ids) != 1 for ids in stop_ids):
        raise RuntimeFileError(f"{name} was not written by FlatLM: its start or stop tokens are not single ids")
    return BundleMetadata(
        max_num_tokens=proto.max_num_tokens,
        stop_token_ids=tuple(ids[0] for ids in stop_ids if ids[0] != _NO_STOP_TOKEN),
        stop_strings=tuple(token.token_str for token in proto.stop_tokens if token.HasField("token_str")),
        start_token_id=start_ids[0] if start_ids else None,
        chat_template=proto.jinja_prompt_template if proto.HasField("jinja_prompt_template") else None,
        sampler=_unpack_sampler(proto.sampler_params) if proto.HasField("sampler_params") else BundleSampler(),
        model_type=proto.llm_model_type.WhichOneof("model_type") or "generic_model",
        manifest=parsed,
    )


def _unpack_sampler(params: Any) -> BundleSampler:
    # The fields are float32: seven digits give back the number that was written.
    return BundleSampler(params.k, float(f"{params.p:.7g}"), float(f"{params.temperature:.7g}"), params.seed)
