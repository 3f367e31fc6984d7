"""The cases of every family, a module for each group of families; `ALL` is what the parity suite runs."""

from tests.examples.cases import llama

ALL = [*llama.CASES]
