"""What the module of an author's model is built from: lmdeploy.pytorch.nn's names, over FlatLM's operators and KV cache."""

from flatlm.authoring.load_weights import load_weight
from flatlm.authoring.modules.activation import GeluAndMul, SiluAndMul
from flatlm.authoring.modules.attention import Attention
from flatlm.authoring.modules.linear import (
    build_colwise_linear,
    build_linear,
    build_merged_colwise_linear,
    build_qkv_proj,
    build_rowwise_linear,
)
from flatlm.authoring.modules.norm import RMSNorm
from flatlm.authoring.modules.rotary import (
    ApplyRotaryEmb,
    Llama3Parameters,
    LongRoPEScalingParameters,
    RopeType,
    YarnParameters,
    build_rotary_embedding,
    build_rotary_embedding_from_config,
)
from flatlm.authoring.step import CudaGraphMixin, StepContext, StepContextManager

__all__ = [
    "ApplyRotaryEmb",
    "Attention",
    "CudaGraphMixin",
    "GeluAndMul",
    "Llama3Parameters",
    "LongRoPEScalingParameters",
    "RMSNorm",
    "RopeType",
    "SiluAndMul",
    "StepContext",
    "StepContextManager",
    "YarnParameters",
    "build_colwise_linear",
    "build_linear",
    "build_merged_colwise_linear",
    "build_qkv_proj",
    "build_rotary_embedding",
    "build_rotary_embedding_from_config",
    "build_rowwise_linear",
    "load_weight",
]
