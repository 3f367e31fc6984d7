"""The cases of every family, a module for each group of families; `ALL` is what the parity suite runs."""

from tests.examples.cases import llama, llama_like, mixtures

ALL = [*llama.CASES, *llama_like.CASES, *mixtures.CASES]
