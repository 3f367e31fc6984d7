"""GLM-4 and ERNIE 4.5, whose heads' entries turn in pairs, and Granite."""

from tests.examples.references import LLAMA_BASE, Family

BASE = {**LLAMA_BASE, "head_dim": 16, "pad_token_id": 0}
GLM = Family("glm", "GlmForCausalLM", BASE)
GLM4 = Family("glm4", "Glm4ForCausalLM", BASE)
ERNIE = Family("ernie4_5", "Ernie4_5ForCausalLM", BASE)
GRANITE = Family("granite", "GraniteForCausalLM", LLAMA_BASE)
QUARTER = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
ALL_TURN = {**QUARTER, "partial_rotary_factor": 1.0}
LINEAR = {"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0}
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1, "logits_scaling": 5.0}

CASES = [
    GLM.case("plain", exported=True),
    GLM.case("no_bias", attention_bias=False),
    GLM.case("quarter_turns", rope_parameters=QUARTER),
    GLM.case("all_turn", rope_parameters=ALL_TURN),
    GLM.case("linear_rope", rope_parameters={**LINEAR, "partial_rotary_factor": 0.5}),
    GLM.case("wide_heads", head_dim=32, num_key_value_heads=1),
    GLM.case("tied_head", tie_word_embeddings=True),
    GLM.case("gelu", hidden_act="gelu"),
    GLM.case("eps", rms_norm_eps=1e-2),
    GLM4.case("plain", exported=True),
    GLM4.case("no_bias", attention_bias=False),
    GLM4.case("quarter_turns", rope_parameters=QUARTER),
    GLM4.case("all_turn", rope_parameters=ALL_TURN),
    GLM4.case("wide_heads", head_dim=32, num_key_value_heads=1),
    GLM4.case("tied_head", tie_word_embeddings=True),
    GLM4.case("gelu", hidden_act="gelu"),
    GLM4.case("eps", rms_norm_eps=1e-2),
    ERNIE.case("plain", exported=True),
    ERNIE.case("biases", exported=True, use_bias=True),
    ERNIE.case("no_groups", num_key_value_heads=None),
    ERNIE.case("shared_out_heads", head_dim=None),
    ERNIE.case("wide_heads", head_dim=32, num_key_value_heads=1),
    ERNIE.case("linear_rope", rope_parameters=LINEAR),
    ERNIE.case("tied_head", tie_word_embeddings=True),
    ERNIE.case("gelu", hidden_act="gelu"),
    ERNIE.case("eps", rms_norm_eps=1e-2),
    GRANITE.case("plain"),
    GRANITE.case("multipliers", exported=True, **MULTIPLIERS),
    *(GRANITE.case(key, **{key: value}) for key, value in MULTIPLIERS.items()),
    GRANITE.case("biases", exported=True, attention_bias=True, mlp_bias=True, **MULTIPLIERS),
    GRANITE.case("only_attention_biases", attention_bias=True, attention_multiplier=0.25),
    GRANITE.case("only_feed_forward_biases", mlp_bias=True, attention_multiplier=0.25),
    GRANITE.case("linear_rope", attention_multiplier=0.25, rope_parameters=LINEAR),
    GRANITE.case("tied_head", tie_word_embeddings=True, **MULTIPLIERS),
    GRANITE.case("gelu", hidden_act="gelu", **MULTIPLIERS),
    GRANITE.case("eps", rms_norm_eps=1e-2, **MULTIPLIERS),
]
