"""The graph of an author's module: its forward traced for each signature, by the decoders' conventions. This loads no compiler."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatlm.authoring.config import AuthoredConfig
from flatlm.convert.graphs import StepGraph, by_cache
from flatlm.convert.signatures import SignatureSpec
from flatlm.errors import ExportError, FlatlmError
from flatlm.layers.kv_cache import KVCache, QuantizedCache, cache_names, empty_caches


@dataclass(frozen=True)
class AuthoredGraph(StepGraph):
    """Signatures `prefill_<T>` and `decode`: inputs and outputs as `DecoderGraph` has them."""

    config: AuthoredConfig

    def stamp(self) -> Any:
        """Compile it, with the author's class: a model object in which weights are still named calls. Raises ExportError."""
        from flatlm.authoring.authored import AuthoredModel, author_line
        from flatlm.convert.traced import stamp_traced

        models = [(AuthoredModel(self.config, caches), own) for caches, own in by_cache(self.geometry, self.specs)]
        try:
            return stamp_traced([self._signature(model, spec) for model, own in models for spec in own])
        except Exception as error:
            line = author_line(error)
            if line is None or isinstance(error, FlatlmError):
                raise
            said = next(iter(str(error).strip().splitlines()), "")
            raise ExportError(
                f"{self.config.reference}: its forward cannot be traced ({line}): {type(error).__name__}: {said}; what it computes must "
                "not depend on the values of tensors"
            ) from error

    def _signature(self, model: Any, spec: SignatureSpec) -> Any:
        from flatlm.convert.traced import TracedSignature

        def call(tokens: Tensor, input_pos: Tensor, **caches: Tensor) -> dict[str, Tensor]:
            given = [type(cache)(*(caches[name] for name in names)) for cache, names in zip(layers, named, strict=True)]
            with model.weight_calls(input_pos.to(torch.float32)):
                logits, updated = model(tokens, input_pos, given)
            out = {name: tensor for names, cache in zip(named, updated, strict=True) for name, tensor in zip(names, cache, strict=True)}
            return {**out, "logits": logits} if spec.logits else out

        layers: list[KVCache | QuantizedCache] = empty_caches(self.config, model.geometry)  # type: ignore[arg-type]
        named = [cache_names(cache, layer) for layer, cache in enumerate(layers)]
        inputs = {
            "tokens": torch.zeros(1, spec.tokens, dtype=torch.int32),
            "input_pos": torch.arange(spec.tokens, dtype=torch.int32),
            **{name: tensor for names, cache in zip(named, layers, strict=True) for name, tensor in zip(names, cache, strict=True)},
        }
        outputs = [*(name for names in named for name in names), *(["logits"] if spec.logits else [])]
        return TracedSignature(spec.name, call, inputs, outputs)
