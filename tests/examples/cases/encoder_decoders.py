"""T5, mT5, BART and mBART."""

from tests.examples.references import Family

T5_BASE = {
    "vocab_size": 96,
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
BART_BASE = {
    "vocab_size": 96,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 40,
}
SPREAD = 0.12  # scores that are not scaled are large
T5 = Family("t5", "T5ForConditionalGeneration", T5_BASE, SPREAD)
MT5 = Family("mt5", "MT5ForConditionalGeneration", T5_BASE, SPREAD)
BART = Family("bart", "BartForConditionalGeneration", BART_BASE)
MBART = Family("mbart", "MBartForConditionalGeneration", {**BART_BASE, "decoder_start_token_id": 2})
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

CASES = [
    T5.case("v1", exported=True),
    T5.case("v1_1", exported=True, **V1_1),
    T5.case("v1_1_and_tied", **V1_1),
    T5.case("gated_and_scaled", feed_forward_proj="gated-gelu"),
    T5.case("unscaled", tie_word_embeddings=False),
    T5.case("gated_silu", feed_forward_proj="gated-silu"),
    T5.case("gelu", feed_forward_proj="gelu"),
    T5.case("as_many_layers", num_decoder_layers=None),
    T5.case("more_decoder_layers", num_layers=1, num_decoder_layers=3),
    T5.case("wide_heads", d_kv=24),
    T5.case("published_buckets", relative_attention_num_buckets=32, relative_attention_max_distance=128),
    T5.case("odd_buckets", relative_attention_num_buckets=10, relative_attention_max_distance=11),
    T5.case("eps", layer_norm_epsilon=1e-2),
    MT5.case("plain", exported=True),
    MT5.case("tied"),
    MT5.case("relu", feed_forward_proj="relu"),
    MT5.case("wide_heads", d_kv=24, num_heads=2),
    BART.case("plain", exported=True),
    BART.case("scaled_embedding", scale_embedding=True),
    BART.case("untied", tie_word_embeddings=False),
    BART.case("relu", activation_function="relu"),
    BART.case("one_layer", encoder_layers=1, decoder_layers=1),
    BART.case("more_decoder_layers", encoder_layers=1, decoder_layers=3),
    MBART.case("plain", exported=True),
    MBART.case("scaled_embedding", scale_embedding=True),
    MBART.case("untied", tie_word_embeddings=False),
    MBART.case("relu", activation_function="relu"),
]
OWN_HEADS = ("t5-v1_1", "mt5-plain", "mt5-relu")
"""Cases whose checkpoint has a head of its own, whatever config.json says."""
