"""Keywords of lmdeploy's that mean nothing here; any other that a module does not know would be lost, so it is refused."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

INERT = frozenset(
    {
        *("all_reduce", "check_dist", "colwise", "device", "dp_disable_tp", "dp_gather", "dp_scatter", "inplace", "is_tp", "layer_type"),
        *("align", "prefix", "quant_config", "replicate", "replicate_kv", "tp", "tp_align_size", "use_flash_mla"),
    }
)
"""They speak of how work is shared out among devices, of memory, or of weights that were quantized before."""


def refuse_unknown(called: Callable[..., Any], keywords: Mapping[str, Any], **plain: Any) -> None:
    """Raises TypeError for a keyword of `called` that is neither inert nor has the value that it has in `plain`."""
    known = [name for name in inspect.signature(called).parameters if name not in ("self", "keywords")]
    name = called.__qualname__
    for key, value in keywords.items():
        simple = isinstance(value, bool | int | float | str)
        if key in plain and value is not None and not (simple and value == plain[key]):
            shown = repr(value) if simple else f"a {type(value).__name__}"
            raise TypeError(f"{name}({key}={shown}) is not supported: leave it out, as {key}={plain[key]!r} is all there is here")
        if key not in INERT and key not in plain:
            close = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
            raise TypeError(f"{name} has no keyword {key!r}: {hint}")
