"""Phi 1 to 4."""

from tests.examples.references import LLAMA_BASE, Family

PHI = Family("phi", "PhiForCausalLM", {**{key: LLAMA_BASE[key] for key in LLAMA_BASE if key != "rms_norm_eps"}, "head_dim": 16})
PHI3 = Family("phi3", "Phi3ForCausalLM", {**LLAMA_BASE, "pad_token_id": 0, "original_max_position_embeddings": 64})
SHORT, LONG = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8], [1.0, 1.5, 2.5, 4.0, 6.0, 9.0, 13.0, 20.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}
PARTIAL_LONGROPE = {**LONGROPE, "short_factor": SHORT[:6], "long_factor": LONG[:6], "partial_rotary_factor": 0.75}

CASES = [
    PHI.case("plain", exported=True),
    PHI.case("normalised_queries_and_keys", exported=True, qk_layernorm=True),
    PHI.case("few_turn", rope_parameters={"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25}),
    PHI.case("all_turn", rope_parameters={"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}),
    PHI.case("linear_rope", rope_parameters={"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5}),
    PHI.case("no_groups", num_key_value_heads=None),
    PHI.case("tied_head", tie_word_embeddings=True),
    PHI.case("relu", hidden_act="relu"),
    PHI.case("gelu", hidden_act="gelu"),
    PHI.case("eps", layer_norm_eps=1e-2),
    PHI3.case("plain", exported=True),
    PHI3.case("no_groups", num_key_value_heads=None),
    PHI3.case("window", exported=True, sliding_window=8),
    PHI3.case("short_longrope", exported=True, max_position_embeddings=128, rope_parameters=LONGROPE),
    PHI3.case("long_longrope", original_max_position_embeddings=16, rope_parameters=LONGROPE),
    PHI3.case("longrope_factor", original_max_position_embeddings=16, rope_parameters={**LONGROPE, "factor": 7.0}),
    PHI3.case("longrope_attention_factor", original_max_position_embeddings=16, rope_parameters={**LONGROPE, "attention_factor": 1.4}),
    PHI3.case("partial_longrope", original_max_position_embeddings=16, rope_parameters=PARTIAL_LONGROPE, tie_word_embeddings=True),
    PHI3.case("partial", rope_parameters={"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}),
    PHI3.case("rope_base", rope_parameters={"rope_theta": 250000.0, "rope_type": "default"}),
    PHI3.case("tied_head", tie_word_embeddings=True),
    PHI3.case("gelu", hidden_act="gelu"),
    PHI3.case("eps", rms_norm_eps=1e-2),
]
