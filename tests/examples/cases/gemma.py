"""Gemma 1, 2 and 3. Gemma 3's published configurations are in the old form of its rope keys: test_gemma.py."""

from tests.examples.references import LLAMA_BASE, Family

BASE = {**LLAMA_BASE, "head_dim": 16, "num_hidden_layers": 4, "tie_word_embeddings": True}
SPREAD = 0.1  # norms that multiply by about 2 and a scaled embedding make logits large
GEMMA = Family("gemma", "GemmaForCausalLM", BASE, SPREAD)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", {**BASE, "sliding_window": 8, "query_pre_attn_scalar": 24}, SPREAD)
GEMMA3 = Family(
    "gemma3", "Gemma3ForCausalLM", {**BASE, "sliding_window": 8, "sliding_window_pattern": 3, "query_pre_attn_scalar": 24}, SPREAD
)
TEXT = {"sliding_window": 8, "query_pre_attn_scalar": 24, "layer_types": ["sliding_attention", "full_attention"] * 2}
IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
GEMMA3_IMAGES = Family(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    {"text_config": {**BASE, **TEXT}, "vision_config": {**IMAGES, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
    SPREAD,
)
SMALL_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
FULL = ["full_attention"] * 4
SLIDING = ["sliding_attention"] * 4

CASES = [
    GEMMA.case("plain", exported=True),
    GEMMA.case("one_wide_key_value_head", num_key_value_heads=1, head_dim=32),
    GEMMA.case("odd_width", hidden_size=72, head_dim=16),
    GEMMA.case("biases", attention_bias=True),
    GEMMA.case("untied_head", tie_word_embeddings=False),
    GEMMA.case("gelu_means_its_approximation", hidden_act="gelu"),
    GEMMA.case("silu", hidden_act="silu"),
    GEMMA.case("rope_base", rope_parameters={"rope_theta": 50000.0, "rope_type": "default"}),
    GEMMA.case("eps", rms_norm_eps=1e-2),
    GEMMA2.case("plain", exported=True),
    GEMMA2.case("small_caps", exported=True, **SMALL_CAPS),
    GEMMA2.case("no_caps", **NO_CAPS),
    GEMMA2.case("only_scores_capped", attn_logit_softcapping=2.0, final_logit_softcapping=None),
    GEMMA2.case("only_logits_capped", attn_logit_softcapping=None, final_logit_softcapping=3.0),
    GEMMA2.case("scale", query_pre_attn_scalar=100),
    GEMMA2.case("no_window", layer_types=FULL),
    GEMMA2.case("windows_everywhere", layer_types=SLIDING, sliding_window=5),
    GEMMA2.case("own_layer_types", layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"]),
    GEMMA2.case("biases", attention_bias=True),
    GEMMA2.case("untied_head", tie_word_embeddings=False),
    GEMMA2.case("gelu", hidden_activation="gelu"),
    GEMMA2.case("rope_base", rope_parameters={"rope_theta": 50000.0, "rope_type": "default"}),
    GEMMA2.case("eps", rms_norm_eps=1e-2),
    GEMMA3.case("plain", exported=True),
    GEMMA3.case(
        "scaled_rope",
        exported=True,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    GEMMA3.case(
        "own_bases",
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 300.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
        },
    ),
    GEMMA3.case("default_pattern", num_hidden_layers=7, sliding_window_pattern=6),
    GEMMA3.case("no_window", layer_types=FULL),
    GEMMA3.case("windows_everywhere", layer_types=SLIDING, sliding_window=5),
    GEMMA3.case("own_layer_types", layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"]),
    GEMMA3.case("scale", query_pre_attn_scalar=100),
    GEMMA3.case("capped_logits", final_logit_softcapping=3.0),
    GEMMA3.case("biases", attention_bias=True),
    GEMMA3.case("untied_head", tie_word_embeddings=False),
    GEMMA3.case("gelu", hidden_activation="gelu"),
    GEMMA3.case("eps", rms_norm_eps=1e-2),
    GEMMA3_IMAGES.case("text_part", exported=True),
    GEMMA3_IMAGES.case("untied_text_part", tie_word_embeddings=False),
]
