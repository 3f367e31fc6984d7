"""Falcon."""

from tests.examples.references import Family

FALCON = Family(
    "falcon",
    "FalconForCausalLM",
    {
        "vocab_size": 128,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}
CASES = [
    FALCON.case("rw", exported=True, **RW),
    FALCON.case("rw_heads_no_power_of_two", **RW | {"num_attention_heads": 12, "hidden_size": 96}),
    FALCON.case("rw_side_by_side", **RW | {"parallel_attn": True}),
    FALCON.case("rw_one_key_value_head", **RW | {"multi_query": True}),
    FALCON.case("rw_turned", **RW | {"alibi": False}),
    FALCON.case("7b", exported=True),
    FALCON.case("7b_sequential", parallel_attn=False),
    FALCON.case("7b_untied_head", tie_word_embeddings=False),
    FALCON.case("7b_biases", bias=True),
    FALCON.case("7b_rope_base", rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
    FALCON.case("40b", exported=True, **NEW),
    FALCON.case("40b_all_heads", new_decoder_architecture=True),
    FALCON.case("40b_alibi", **NEW, alibi=True),
    FALCON.case("40b_biases", **NEW, bias=True),
    FALCON.case("falcon2", **NEW, num_ln_in_parallel_attn=1, ffn_hidden_size=96, activation="gelu_pytorch_tanh"),
    FALCON.case("eps", layer_norm_epsilon=1e-2),
]
