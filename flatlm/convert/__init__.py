"""Convert modules to TFLite: `signature(name, module, args).signature(...).convert()`, and the fast path's stages.

The public names are loaded when they are asked for: importing this package loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatlm.convert.generic import ConvertedModel, Signatures, convert, signature

__all__ = ["ConvertedModel", "Signatures", "convert", "signature"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from flatlm.convert import generic

        return getattr(generic, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
