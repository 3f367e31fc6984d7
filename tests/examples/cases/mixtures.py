"""Mixtures of experts: Mixtral, Qwen3-MoE, OLMoE, Granite-MoE."""

from tests.examples.references import LLAMA_BASE, Family

MIXTRAL = Family("mixtral", "MixtralForCausalLM", {**LLAMA_BASE, "num_local_experts": 4, "num_experts_per_tok": 2})
SMALL = {"num_experts": 8, "num_experts_per_tok": 3}
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", {**LLAMA_BASE, **SMALL, "moe_intermediate_size": 32, "head_dim": 16})
OLMOE = Family("olmoe", "OlmoeForCausalLM", {**LLAMA_BASE, **SMALL})
GRANITE_MOE = Family(
    "granite_moe",
    "GraniteMoeForCausalLM",
    {**LLAMA_BASE, "num_local_experts": 8, "num_experts_per_tok": 3, "attention_multiplier": 0.25},
)
CASES = [
    MIXTRAL.case("four_experts", exported=True),
    MIXTRAL.case("one_of_three", num_local_experts=3, num_experts_per_tok=1),
    MIXTRAL.case("window", sliding_window=8),
    QWEN3_MOE.case("plain"),
    QWEN3_MOE.case("renormalized", norm_topk_prob=True, exported=True),
    QWEN3_MOE.case("some_layers_dense", mlp_only_layers=[1]),
    QWEN3_MOE.case("every_second_layer", decoder_sparse_step=2),
    OLMOE.case("plain", exported=True),
    OLMOE.case("renormalized", norm_topk_prob=True, num_key_value_heads=4),
    OLMOE.case("clipped", clip_qkv=0.5),
    GRANITE_MOE.case("plain", exported=True),
    GRANITE_MOE.case(
        "multipliers", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.4, attention_multiplier=0.1, attention_bias=True
    ),
    GRANITE_MOE.case("tied", tie_word_embeddings=True),
]
