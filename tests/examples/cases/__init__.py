"""The cases of every family, a module for each group of families; `ALL` is what the parity suite runs."""

from tests.examples.cases import falcon, gemma, glm, gpt2, gpt_neox, llama, llama_like, mixtures, olmo, phi

ALL = [
    *gemma.CASES,
    *llama.CASES,
    *llama_like.CASES,
    *mixtures.CASES,
    *gpt2.CASES,
    *gpt_neox.CASES,
    *phi.CASES,
    *glm.CASES,
    *falcon.CASES,
    *olmo.CASES,
]
