"""Families that differ from Llama in a flag or two: Mistral, Qwen2, Qwen3, SmolLM3."""

from tests.examples.references import LLAMA_BASE, Family

FOUR = {**LLAMA_BASE, "num_hidden_layers": 4}
MISTRAL = Family("mistral", "MistralForCausalLM", {**LLAMA_BASE, "sliding_window": None})
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", LLAMA_BASE)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", {**LLAMA_BASE, "head_dim": 16})
SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", {**FOUR, "pad_token_id": 0})
YARN = {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES = [
    MISTRAL.case("whole"),
    MISTRAL.case("window", sliding_window=8, exported=True),
    MISTRAL.case("wide_heads", head_dim=32),
    QWEN2.case("plain", exported=True),
    QWEN2.case("tied", tie_word_embeddings=True),
    QWEN2.case("windows", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    QWEN2.case("unused_window", use_sliding_window=False, sliding_window=8, max_window_layers=1),
    QWEN2.case("yarn", rope_parameters=YARN),
    QWEN3.case("plain", exported=True),
    QWEN3.case("tied", tie_word_embeddings=True),
    QWEN3.case("bias", attention_bias=True),
    QWEN3.case("wide_heads", head_dim=32),
    QWEN3.case("windows", use_sliding_window=True, sliding_window=8, max_window_layers=2),
    SMOLLM3.case("nope_every_fourth", exported=True),
    SMOLLM3.case("nope_by_list", no_rope_layers=[0, 1, 1, 0]),
    SMOLLM3.case("untied_biases", tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    SMOLLM3.case("windows", use_sliding_window=True, sliding_window=8),
]
