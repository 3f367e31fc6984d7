"""Llama."""

from tests.examples.references import LLAMA_BASE, Family

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA = Family("llama", "LlamaForCausalLM", LLAMA_BASE)
CASES = [
    LLAMA.case("llama2", num_key_value_heads=4),
    LLAMA.case("grouped_queries", exported=True),
    LLAMA.case("one_key_value_head", num_key_value_heads=1),
    LLAMA.case("llama3_rope_scaling", exported=True, rope_parameters={"rope_theta": 500000.0, **LLAMA3_ROPE}),
    LLAMA.case("linear_rope_scaling", rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}),
    LLAMA.case("dynamic_rope_scaling", rope_parameters={"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}),
    LLAMA.case(
        "yarn_rope_scaling",
        rope_parameters={"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ),
    LLAMA.case("rope_base", rope_parameters={"rope_theta": 100000.0, "rope_type": "default"}),
    LLAMA.case("tied_head", tie_word_embeddings=True),
    LLAMA.case("biases", exported=True, attention_bias=True, mlp_bias=True),
    LLAMA.case("wide_heads", head_dim=32),
    LLAMA.case("gelu", hidden_act="gelu"),
    LLAMA.case("gelu_tanh", hidden_act="gelu_pytorch_tanh"),
    LLAMA.case("relu", hidden_act="relu"),
    LLAMA.case("eps", rms_norm_eps=1e-2),
]
