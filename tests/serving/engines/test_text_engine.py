"""Slots over the demo model, in this process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.speculation import SpeculativeRunner
from flatlm.serving.engines.messages import EngineSpec, Job, ScoreRequest, Update, WriteRequest
from flatlm.serving.engines.text_engine import WORTH_WAITING, TextEngine
from flatlm.serving.engines.turns import Turns
from flatlm.utilities.bundling import bundled_tokenizer
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

SYSTEM = "Once upon a time, in a small village by the sea, there lived a girl named Lily, who had a dog and a red ball. " * 4
ENDS = (
    "One day she ran",
    "Her dog was",
    "The ball rolled",
    "Then a wind came",
    "Her mother said",
    "They sat on",
    "The sea was",
    "At night",
)
GREEDY = GenerationConfig(max_new_tokens=24)


@pytest.fixture(scope="module")
def tokenizer(demo_file: Path) -> Tokenizer:
    return bundled_tokenizer(demo_file)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    return [tuple(tokenizer.encode(SYSTEM + end)) for end in ENDS]


@pytest.fixture
def engine(demo_file: Path) -> TextEngine:
    return TextEngine.open(EngineSpec(demo_file, threads=1, slots=4))


def answers(engine: TextEngine, requests: Sequence[Any]) -> list[tuple[str, Any]]:
    """All at once: the text of each, and its figures."""
    turns = Turns(engine)
    for number, request in enumerate(requests):
        turns.add(Job(number, request, None))
    updates = list[Update]()
    while turns.busy:
        turns.turn()
        updates += turns.due()
    assert not [update.failure for update in updates if update.failure]
    texts = ["".join(piece.text for update in updates if update.job == job for piece in update.items) for job in range(len(requests))]
    stats = {update.job: update.stats for update in updates if update.done}
    return [(text, stats[job]) for job, text in enumerate(texts)]


def read(found: Sequence[tuple[str, Any]]) -> int:
    """Tokens of prompts that the model read."""
    return sum(stats.prompt_tokens - stats.shared_tokens for _, stats in found)


def common(prompts: Sequence[Sequence[int]]) -> int:
    return next(place for place, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)


@pytest.mark.parametrize("config", [GREEDY, replace(GREEDY, temperature=1.0, seed=11)])
def test_texts_written_together_are_those_written_alone(
    engine: TextEngine, demo_file: Path, tokenizer: Tokenizer, prompts: list[tuple[int, ...]], config: GenerationConfig
) -> None:
    together = answers(engine, [WriteRequest(ids, config) for ids in prompts])
    with Runner.open(demo_file, threads=1) as runner:
        alone = [generate(runner, tokenizer, ids, config).text for ids in prompts]
    assert [text for text, _ in together] == alone
    assert len(set(alone)) == len(alone)


@pytest.mark.parametrize("config", [GREEDY, replace(GREEDY, temperature=1.0, seed=11)])
def test_a_draft_changes_no_text(demo_file: Path, prompts: list[tuple[int, ...]], engine: TextEngine, config: GenerationConfig) -> None:
    """The model itself writes ahead: all that it would pick greedily is accepted. Beginnings are shared as without it."""
    drafted = TextEngine.open(EngineSpec(demo_file, threads=1, slots=4, draft=demo_file))
    requests = [WriteRequest(ids, config) for ids in prompts]
    found, expected = answers(drafted, requests), answers(engine, requests)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert read(found) == read(expected)
    counts = [cast(SpeculativeRunner, slot.session.runner).counts for slot in drafted._slots]
    assert sum(each.accepted for each in counts) > 0


def test_a_shared_beginning_is_read_once(engine: TextEngine, prompts: list[tuple[int, ...]]) -> None:
    """Also where all come at once, to more slots than one."""
    shared = common(prompts)
    assert shared > 100
    found = answers(engine, [WriteRequest(ids, GREEDY) for ids in prompts])
    saved = sum(map(len, prompts)) - read(found)
    assert saved > (shared - WORTH_WAITING) * (len(prompts) - 1)


def test_without_sharing_all_is_read(demo_file: Path, prompts: list[tuple[int, ...]]) -> None:
    engine = TextEngine.open(EngineSpec(demo_file, threads=1, slots=2, share_beginnings=False))
    assert read(answers(engine, [WriteRequest(ids, GREEDY) for ids in prompts])) == sum(map(len, prompts))


def test_n_texts_of_one_prompt_read_it_once(engine: TextEngine, prompts: list[tuple[int, ...]]) -> None:
    found = answers(engine, [WriteRequest(prompts[0], replace(GREEDY, temperature=1.0, seed=seed)) for seed in range(4)])
    assert read(found) < len(prompts[0]) + 3 * WORTH_WAITING
    assert len({text for text, _ in found}) == 4


def test_a_conversation_keeps_its_slot_while_others_begin_as_it_did(engine: TextEngine, prompts: list[tuple[int, ...]]) -> None:
    long = prompts[0] + prompts[1][1:] + prompts[2][1:]
    answers(engine, [WriteRequest(long, GREEDY)])
    answers(engine, [WriteRequest(prompts[3], GREEDY)])
    ((_, stats),) = answers(engine, [WriteRequest((*long, 5, 6, 7), GREEDY)])
    assert stats.shared_tokens == len(long)


def test_the_slot_that_was_not_used_for_longest_is_taken(engine: TextEngine, tokenizer: Tokenizer) -> None:
    texts = [
        tuple(tokenizer.encode(text))[1:] for text in ("A cat sat on", "Two dogs ran to", "My mother said that", "Blue birds can", "We")
    ]
    for ids in texts:
        answers(engine, [WriteRequest(ids, GREEDY)])
    slots = [*engine._slots[1:], engine._slots[0]]
    assert [slot.session.held[: len(ids)] for slot, ids in zip(slots, texts[1:], strict=True)] == texts[1:]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_text_that_is_left_does_not_harm_the_next(engine: TextEngine, prompts: list[tuple[int, ...]], steps: int) -> None:
    ((expected, _),) = answers(engine, [WriteRequest(prompts[0], GREEDY)])
    task = engine.begin(WriteRequest(prompts[1], GREEDY))
    assert task is not None
    for _ in range(steps):
        task.step()
    task.close()
    ((text, _),) = answers(engine, [WriteRequest(prompts[0], GREEDY)])
    assert text == expected


def test_a_texts_probabilities(engine: TextEngine, demo_file: Path, prompts: list[tuple[int, ...]]) -> None:
    ids = prompts[0][:20]
    turns = Turns(engine)
    turns.add(Job(0, ScoreRequest(ids, 2), None))
    found = []
    while turns.busy:
        turns.turn()
        found += [each for update in turns.due() for item in update.items for each in item]
    assert [each.token_id for each in found] == list(ids[1:])
    with Runner.open(demo_file, threads=1) as runner:
        logits = np.stack([runner.step(token) for token in ids[:-1]]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(np.exp([each.logprob for each in found]), probabilities[range(19), ids[1:]], rtol=1e-5)
    assert all([top.token_id for top in each.top] == list(np.argsort(-row)[:2]) for each, row in zip(found, probabilities, strict=True))
