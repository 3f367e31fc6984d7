"""The README is true: its commands run and print what it shows (numbers aside), its Python runs, its tables are the code's own."""

from pathlib import Path

import pytest

from tests.docs_blocks import run_page
from tools.update_docs import README, updated

# What depends on the processor (sampled text, speed) is run, and not compared.
NOT_COMPARED = ("flatlm generate", "flatlm benchmark")
# Each verb is started as a reader starts it, by a process of its own; then again in this one.
VERBS = ("check", "export", "generate", "benchmark", "inspect", "evaluate")
# A search takes minutes: tests/generative/test_tune.py makes a real one.
NOT_RUN = ("flatlm tune",)


def test_tables_are_up_to_date() -> None:
    text = README.read_text("utf-8")
    assert updated(text) == text, "run python tools/update_docs.py"


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    assert run_page(README, tmp_path, not_run=NOT_RUN, not_compared=NOT_COMPARED, processes=VERBS) >= 4
