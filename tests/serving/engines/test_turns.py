"""With an engine that counts: no model, no clock but the test's."""

from typing import Any

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.serving.engines.messages import Job, Update
from flatlm.serving.engines.turns import SENT_EVERY_S, Turns


class Counting:
    """A request (name, steps) gives name0, name1, ...; the item of a step that is None was the prompt's."""

    stats: Any = None

    def __init__(self, engine: "Engine", request: tuple[str, int]) -> None:
        self.name, self.steps = request
        self.engine, self.done = engine, 0

    def step(self) -> str | None:
        self.engine.log.append(self.name)
        if self.done == self.steps:
            raise StopIteration
        if self.name == "wrong":
            raise RuntimeFileError("that cannot be")
        if self.name == "broken":
            raise ZeroDivisionError
        self.done += 1
        return None if self.name == "reads" else f"{self.name}{self.done - 1}"

    def late(self) -> str:
        return "cut"

    def close(self) -> None:
        self.engine.open.remove(self)


class Engine:
    facts: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.log: list[str] = []
        self.open: list[Counting] = []

    @property
    def full(self) -> bool:
        return len(self.open) == self.slots

    def begin(self, request: Any) -> Counting | None:
        if request[0] == "refused":
            raise RuntimeFileError("not that")
        assert not self.full
        self.open.append(Counting(self, request))
        return self.open[-1]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(slots: int, clock: Clock, *requests: tuple[str, int], seconds: float | None = None) -> tuple[Engine, Turns]:
    engine = Engine(slots)
    turns = Turns(engine, clock=clock)
    for number, request in enumerate(requests):
        turns.add(Job(number, request, seconds))
    return engine, turns


def run(turns: Turns, most: int = 100) -> list[Update]:
    updates = []
    while turns.busy and most:
        turns.turn()
        updates += turns.due()
        most -= 1
    return updates


def items(updates: list[Update], job: int) -> list[Any]:
    return [item for update in updates if update.job == job for item in update.items]


def test_each_takes_a_step_in_its_turn_and_the_queue_follows(clock: Clock) -> None:
    engine, turns = make(2, clock, ("a", 2), ("b", 4), ("c", 2))
    updates = run(turns)
    assert "".join(engine.log) == "ab" + "ab" + "ab" + "bc" + "bc" + "c"  # the last of each ends it; c takes a's slot
    assert [items(updates, job) for job in range(3)] == [["a0", "a1"], ["b0", "b1", "b2", "b3"], ["c0", "c1"]]
    assert sorted(update.job for update in updates if update.done) == [0, 1, 2]
    assert not engine.open


def test_the_first_item_is_sent_at_once_and_the_others_together(clock: Clock) -> None:
    _, turns = make(1, clock, ("a", 10))
    turns.turn()
    assert [update.items for update in turns.due()] == [("a0",)]
    for _ in range(4):
        turns.turn()
        assert turns.due() == []
    clock.now += SENT_EVERY_S
    turns.turn()
    assert [update.items for update in turns.due()] == [("a1", "a2", "a3", "a4", "a5")]


def test_the_first_item_of_a_later_job_is_sent_at_once_too(clock: Clock) -> None:
    _, turns = make(2, clock, ("a", 10))
    turns.turn()
    assert turns.due()
    turns.add(Job(1, ("b", 10), None))
    turns.turn()
    assert [(update.job, update.items) for update in turns.due()] == [(0, ("a1",)), (1, ("b0",))]


def test_what_reads_its_prompt_sends_nothing(clock: Clock) -> None:
    _, turns = make(1, clock, ("reads", 3))
    clock.now += 1
    assert [(update.items, update.done) for update in run(turns)] == [((), True)]


@pytest.mark.parametrize("steps", [0, 3])
def test_a_cancelled_job_is_dropped(clock: Clock, steps: int) -> None:
    engine, turns = make(1, clock, ("a", 10), ("b", 1))
    for _ in range(steps):
        turns.turn()
    turns.cancel(0)
    turns.cancel(77)
    assert "".join(engine.log) == "a" * steps
    updates = run(turns)
    assert "".join(engine.log) == "a" * steps + "bb"
    assert items(updates, 1) == ["b0"]
    assert not engine.open


def test_a_job_whose_time_is_over_is_cut(clock: Clock) -> None:
    engine, turns = make(1, clock, ("a", 10), ("b", 10), seconds=5)
    for _ in range(3):
        turns.turn()
    sent = turns.due()
    clock.now += 5
    updates = sent + run(turns)
    assert items(updates, 0) == ["a0", "a1", "a2", "cut"]
    assert [update.failure and update.failure.kind for update in updates if update.done] == [None, "deadline"]
    assert not engine.open


@pytest.mark.parametrize(("name", "kind"), [("wrong", "input"), ("broken", "fault"), ("refused", "input")])
def test_a_job_that_fails_fails_alone(clock: Clock, name: str, kind: str) -> None:
    engine, turns = make(2, clock, (name, 5), ("a", 2), ("b", 1))
    updates = run(turns)
    assert {update.job: update.failure and update.failure.kind for update in updates if update.done} == {0: kind, 1: None, 2: None}
    assert (items(updates, 1), items(updates, 2)) == (["a0", "a1"], ["b0"])
    assert not engine.open
