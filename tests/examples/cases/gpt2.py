"""GPT-2."""

from tests.examples.references import Family

GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {
        "vocab_size": 128,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
CASES = [
    GPT2.case("as_published", exported=True),
    GPT2.case("untied_head", tie_word_embeddings=False),
    GPT2.case("inner_width", n_inner=96, activation_function="relu"),
    GPT2.case("gelu", activation_function="gelu"),
    GPT2.case("unscaled_scores", scale_attn_weights=False),
    GPT2.case("scores_scaled_by_layer", exported=True, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    GPT2.case("odd_heads", n_embd=60, n_head=12),
    GPT2.case("eps", layer_norm_epsilon=1e-2),
]
