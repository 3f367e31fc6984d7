"""`signature(...).signature(...).convert(...)`: any `nn.Module` to TFLite through litert-torch, weights and all.

The reference that the fast path is tested against, and the way for models that are not made of FlatLM's blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatlm.convert.atomic_file import atomic_output
from flatlm.convert.quiet import quiet


@dataclass(frozen=True)
class ConvertedModel:
    """A TFLite flatbuffer in memory."""

    content: bytes

    def export(self, path: str | Path) -> None:
        """Write it: a temporary name, flushed, then renamed. Raises OutputError."""
        with atomic_output(Path(path)) as temporary:
            temporary.write_bytes(self.content)


@dataclass(frozen=True)
class Signatures:
    """The entry points to convert, so far. Immutable: `signature` returns a longer one."""

    entries: tuple[tuple[str, nn.Module, tuple[Any, ...], Mapping[str, Any]], ...] = ()

    def signature(
        self, name: str, module: nn.Module, sample_args: tuple[Any, ...] = (), sample_kwargs: Mapping[str, Any] | None = None
    ) -> "Signatures":
        """With one more entry point: `module` traced with tensors of the sample's shapes and dtypes.

        Inputs are named after the keyword arguments (`args_<i>` for positional ones), outputs after a returned dict's keys.
        """
        return Signatures((*self.entries, (name, module.eval(), tuple(sample_args), dict(sample_kwargs or {}))))

    def convert(self) -> ConvertedModel:
        """Trace, lower and serialise all entry points into one flatbuffer that shares their weights."""
        with quiet(), torch.inference_mode():
            import litert_torch

            import flatlm.convert.lowerings  # noqa: F401 - registers the layers' operators

            converter = litert_torch
            for name, module, args, kwargs in self.entries:
                converter = converter.signature(name, module, sample_args=args, sample_kwargs=dict(kwargs))
            model = converter.convert()
            return ConvertedModel(model.model_content())


def signature(
    name: str, module: nn.Module, sample_args: tuple[Any, ...] = (), sample_kwargs: Mapping[str, Any] | None = None
) -> Signatures:
    """Begin with one entry point; see `Signatures.signature`."""
    return Signatures().signature(name, module, sample_args, sample_kwargs)


def convert(module: nn.Module, sample_args: tuple[Tensor, ...]) -> ConvertedModel:
    """One module, one entry point, named `serving_default`."""
    return signature("serving_default", module, sample_args).convert()
