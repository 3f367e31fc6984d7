"""Which kind of model a configuration is of: a lazy table, by the configuration's type."""

import importlib
from typing import Any

from flatlm.utilities.kinds.kind import ModelKind

KINDS = {
    "AuthoredConfig": "flatlm.authoring.module_kind:AuthoredModules",
    "ModelConfig": "flatlm.utilities.kinds.decoder:Decoders",
    "EncoderConfig": "flatlm.utilities.kinds.encoder:Encoders",
    "FlowConfig": "flatlm.authoring.compute_graph.kind:Flows",
    "EncoderDecoderConfig": "flatlm.utilities.kinds.encoder_decoder:EncoderDecoders",
}


def kind_of(config: Any) -> ModelKind:
    """The kind of a configuration, by its type."""
    module, name = KINDS[type(config).__name__].split(":")
    kind: ModelKind = getattr(importlib.import_module(module), name)()
    return kind
