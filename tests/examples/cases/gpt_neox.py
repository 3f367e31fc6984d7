"""GPT-NeoX and OPT."""

from tests.examples.references import Family

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_NEOX = Family("gpt_neox", "GPTNeoXForCausalLM", {**TINY, "intermediate_size": 96})
OPT = Family("opt", "OPTForCausalLM", {**TINY, "ffn_dim": 96})
CASES = [
    GPT_NEOX.case("pythia", exported=True),
    GPT_NEOX.case("sequential", use_parallel_residual=False),
    GPT_NEOX.case("whole_heads_turn", rotary_pct=1.0, rotary_emb_base=100),
    GPT_NEOX.case("half_of_heads_turns", rotary_pct=0.5, hidden_act="gelu_fast"),
    GPT_NEOX.case("linear_rope_scaling", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    GPT_NEOX.case("no_attention_bias", attention_bias=False),
    GPT_NEOX.case("tied_head", tie_word_embeddings=True),
    GPT_NEOX.case("eps", layer_norm_eps=1e-2),
    OPT.case("as_published", exported=True),
    OPT.case("untied_head", tie_word_embeddings=False),
    OPT.case("galactica", enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
    OPT.case("no_biases", enable_bias=False),
    OPT.case("bare_norms", exported=True, layer_norm_elementwise_affine=False),
]
