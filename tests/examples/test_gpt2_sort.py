"""A GPT-2 that was trained to sort six letters of three: its file sorts them all, as the original does."""

from itertools import product
from pathlib import Path

import pytest
import torch
import transformers

from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export

LETTERS = 6


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["none", "dynamic_int8"])
def test_every_input_is_sorted_as_the_original_sorts_it(recipe: str, shared: Path, tmp_path: Path) -> None:
    checkpoint, file = shared / "checkpoints/gpt2_nano_sort", tmp_path / "sort.tflite"
    export(ExportRequest(checkpoint, file, get_recipe(recipe), (LETTERS,), 11))
    inputs = list(product(range(3), repeat=LETTERS))
    original = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    expected = original.generate(torch.tensor(inputs), max_new_tokens=LETTERS, do_sample=False)[:, LETTERS:].tolist()
    with Runner.open(file) as runner:
        found = [answer(runner, letters) for letters in inputs]
    assert len(found) == 729
    assert found == expected == [sorted(letters) for letters in inputs]


def answer(runner: Runner, letters: tuple[int, ...]) -> list[int]:
    """As many greedy tokens as there are letters."""
    runner.reset()
    runner.prefill(letters[:-1])
    made = [letters[-1]]
    for _ in letters:
        made.append(int(runner.step(made[-1]).argmax()))
    return made[1:]
