"""StableLM, OLMo, OLMo 2 and OLMo 3."""

from tests.examples.references import Family

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
STABLELM = Family("stablelm", "StableLmForCausalLM", TINY)
OLMO = Family("olmo", "OlmoForCausalLM", TINY)
OLMO2 = Family("olmo2", "Olmo2ForCausalLM", TINY)
OLMO3 = Family(
    "olmo3", "Olmo3ForCausalLM", {**TINY, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
)
CASES = [
    STABLELM.case("3b", num_key_value_heads=4),
    STABLELM.case("2_1.6b", exported=True, use_qkv_bias=True),
    STABLELM.case("2_12b", exported=True, qk_layernorm=True, use_parallel_residual=True),
    STABLELM.case("query_key_norms", qk_layernorm=True),
    STABLELM.case("side_by_side", use_parallel_residual=True),
    STABLELM.case("whole_heads_turn", partial_rotary_factor=1.0, qk_layernorm=True),
    STABLELM.case("rope_base", rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    STABLELM.case("tied_head", tie_word_embeddings=True, hidden_act="gelu"),
    STABLELM.case("eps", layer_norm_eps=1e-2),
    OLMO.case("1b", exported=True),
    OLMO.case("7b_clipped", exported=True, num_key_value_heads=4, clip_qkv=1.0),
    OLMO.case("biases", attention_bias=True, clip_qkv=0.5),
    OLMO.case("tied_head", tie_word_embeddings=True, hidden_act="gelu"),
    OLMO.case("linear_rope_scaling", rope_parameters={"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}),
    OLMO2.case("7b", num_key_value_heads=4),
    OLMO2.case("32b", exported=True, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    OLMO2.case("biases", attention_bias=True),
    OLMO2.case("tied_head", tie_word_embeddings=True, hidden_act="gelu"),
    OLMO2.case("eps", rms_norm_eps=1e-2),
    OLMO3.case("7b", exported=True),
    OLMO3.case("yarn", rope_parameters={"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
    OLMO3.case("layers_as_by_default", num_hidden_layers=4, layer_types=None),
    OLMO3.case("wide_window", sliding_window=100, attention_bias=True),
]
