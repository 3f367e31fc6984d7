"""`signature(...).signature(...).convert(...)`: any `nn.Module` to TFLite through litert-torch, weights and all.

The reference that the fast path is tested against, and the way for models that are not made of FlatLM's blocks. With a recipe it goes
through PyTorch 2 Export quantization (pt2e.py), and its weights lie after the flatbuffer's root as the fast path's do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import nn

from flatlm import __version__
from flatlm.convert import flatbuffer
from flatlm.convert.atomic_file import atomic_output
from flatlm.convert.link import Root, link, manifest_text, write_linked
from flatlm.convert.quiet import quiet
from flatlm.convert.weights import WeightLayout, write_all
from flatlm.layers import ops
from flatlm.quantize.recipes import Recipe

Entry = tuple[str, nn.Module, tuple[Any, ...], Mapping[str, Any]]
"""A signature: its name, its module, and the arguments to trace it with."""


class ConvertedModel:
    """A TFLite flatbuffer: all of it in memory, or a root whose weights are written behind it by a layout."""

    def __init__(self, root: bytes | Root, layout: WeightLayout | None = None) -> None:
        self._root = root
        self._layout = layout

    @property
    def content(self) -> bytes:
        """The whole file's bytes."""
        if isinstance(self._root, bytes):
            return self._root
        with TemporaryFile() as file:
            self._write(file.fileno())
            return file.read()

    def export(self, path: str | Path) -> None:
        """Write it: a temporary name, flushed, then renamed. Raises OutputError; CheckpointError for a weight that is not finite."""
        with atomic_output(Path(path)) as temporary, temporary.open("w+b") as file:
            self._write(file.fileno())

    def _write(self, handle: int) -> None:
        if isinstance(self._root, bytes):
            write_all(handle, self._root, 0)
        else:
            assert self._layout is not None
            write_linked(self._root, self._layout, handle)


@dataclass(frozen=True)
class Signatures:
    """The entry points to convert, so far. Immutable: `signature` returns a longer one."""

    entries: tuple[Entry, ...] = ()

    def signature(
        self, name: str, module: nn.Module, sample_args: tuple[Any, ...] = (), sample_kwargs: Mapping[str, Any] | None = None
    ) -> "Signatures":
        """With one more entry point: `module` traced with tensors of the sample's shapes and dtypes.

        Inputs are named after the keyword arguments (`args_<i>` for positional ones), outputs after a returned dict's keys.
        """
        return Signatures((*self.entries, (name, module.eval(), tuple(sample_args), dict(sample_kwargs or {}))))

    def convert(self, quant_config: Recipe | None = None) -> ConvertedModel:
        """Trace, lower and serialise all entry points into one flatbuffer that shares their weights.

        `quant_config`: a recipe (flatlm.quantize.quant_recipes, or one of your own) by which linears and embeddings are stored; None leaves
        all weights to the converter, as float32. Raises RecipeError where the recipe cannot be followed, before any work.
        """
        if quant_config is None:
            return ConvertedModel(_lower(self.entries))
        with ops.calling():
            with quiet(), torch.no_grad():
                from flatlm.convert import pt2e

                entries, layout = pt2e.quantize(self.entries, quant_config)
            model = flatbuffer.parse(_lower(entries))
        manifest = {"flatlm": __version__, "recipe": quant_config.to_dict(), "signatures": [name for name, *_ in entries]}
        root = link(model, layout, manifest_capacity=len(manifest_text(manifest)))
        root.set_manifest(manifest)
        return ConvertedModel(root, layout)


def _lower(entries: Sequence[Entry]) -> bytes:
    with quiet(), torch.inference_mode():
        import litert_torch

        import flatlm.convert.lowerings  # noqa: F401 - registers the layers' operators

        converter = litert_torch
        for name, module, args, kwargs in entries:
            converter = converter.signature(name, module, sample_args=args, sample_kwargs=dict(kwargs))
        content: bytes = converter.convert().model_content()
        return content


def signature(
    name: str, module: nn.Module, sample_args: tuple[Any, ...] = (), sample_kwargs: Mapping[str, Any] | None = None
) -> Signatures:
    """Begin with one entry point; see `Signatures.signature`."""
    return Signatures().signature(name, module, sample_args, sample_kwargs)


def convert(module: nn.Module, sample_args: tuple[Any, ...], *, quant_config: Recipe | None = None) -> ConvertedModel:
    """One module, one entry point, named `serving_default`; `quant_config` is a recipe, as for `Signatures.convert`."""
    return signature("serving_default", module, sample_args).convert(quant_config)
