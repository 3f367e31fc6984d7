"""The cases of every family, a module for each group of families; `ALL` is what the parity suite runs."""

from tests.examples.cases import gpt2, llama, llama_like, mixtures

ALL = [*gemma.CASES, *llama.CASES, *llama_like.CASES, *mixtures.CASES, *gpt2.CASES]
