"""FlatLM: language-model checkpoints to verified, statically shaped flatbuffers for on-device runtimes."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "AutoLoader": "flatlm.tasks.auto_loader",
    "ComputeGraph": "flatlm.authoring.compute_graph",
    "EngineConfig": "flatlm.generative.engine_config",
    "GenerationConfig": "flatlm.generative.generation_config",
    "check_model": "flatlm.authoring.check",
    "pipeline": "flatlm.generative.pipeline",
}
"""What `flatlm.NAME` is imported from, when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flatlm' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
