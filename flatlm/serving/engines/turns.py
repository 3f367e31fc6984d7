"""Many jobs, one thread: each running one takes a step in its turn, and the next in the queue begins where there is room."""

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flatlm.errors import FlatlmError
from flatlm.serving.engines.messages import Failure, Job, Update

SENT_EVERY_S = 0.015
"""Items are sent together, at most so often: a fast model's every token would wake both processes."""


class Task(Protocol):
    """A job that has begun."""

    @property
    def stats(self) -> Any:
        """What is told at its end."""

    def step(self) -> Any:
        """One step: an item of the answer, or None where the step gave none. StopIteration at the end; FlatlmError for bad input."""

    def late(self) -> Any:
        """Its time is over: the item that ends the answer here, or None where it has not begun."""

    def close(self) -> None:
        """It ends, however far it is."""


class Engine(Protocol):
    """What turns jobs into tasks."""

    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def full(self) -> bool:
        """Whether no job at all could begin now."""

    def begin(self, request: Any) -> Task | None:
        """None: there is no room for it now. FlatlmError for bad input."""


class Turns:
    """The jobs of one engine. `add` and `cancel` at any time between two turns."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._queue: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._updates: list[Update] = []
        self._urgent = False
        self._sent_at = -math.inf
        self._soonest = math.inf  # no job's time is over before

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._running)

    def add(self, job: Job) -> None:
        ends_at = math.inf if job.seconds is None else self._clock() + job.seconds
        self._queue.append(_Running(job, ends_at))
        self._soonest = min(self._soonest, ends_at)

    def cancel(self, job_id: int) -> None:
        """Of a job that has ended: nothing. What was done of it is told."""
        for one in [one for one in (*self._queue, *self._running) if one.id == job_id]:
            one.items.clear()
            self._end(one)

    def turn(self) -> None:
        """A step of each."""
        if (now := self._clock()) >= self._soonest:
            for one in [one for one in (*self._running, *self._queue) if one.ends_at <= now]:
                self._expire(one)
            self._soonest = min((one.ends_at for one in (*self._running, *self._queue)), default=math.inf)
        self._begin()
        for one in self._running.copy():
            self._step(one)

    def due(self) -> list[Update]:
        """What is to be sent now: all, where something began or ended, or the last time is a while ago."""
        now = self._clock()
        if not self._urgent and self.busy and now - self._sent_at < SENT_EVERY_S:
            return []
        for one in self._running:
            if one.items:
                self._updates.append(Update(one.id, tuple(one.items)))
                one.items.clear()
        updates, self._updates, self._urgent, self._sent_at = self._updates, [], False, now
        return updates

    def _begin(self) -> None:
        """Those in the queue that there is room for, in their order."""
        for one in list(self._queue):
            if self._engine.full:
                return
            try:
                one.task = self._engine.begin(one.request)
            except Exception as error:
                self._fail(one, error)
                continue
            if one.task is not None:
                self._queue.remove(one)
                self._running.append(one)

    def _step(self, one: "_Running") -> None:
        assert one.task is not None
        try:
            item = one.task.step()
        except StopIteration:
            self._end(one)
            return
        except Exception as error:
            self._fail(one, error)
            return
        if item is not None:
            one.items.append(item)
            self._urgent |= not one.began
            one.began = True

    def _expire(self, one: "_Running") -> None:
        last = None if one.task is None or not one.began else one.task.late()
        if last is None:
            self._end(one, Failure("deadline", "the request's time was over before its answer began"))
        else:
            one.items.append(last)
            self._end(one)

    def _fail(self, one: "_Running", error: Exception) -> None:
        if not isinstance(error, FlatlmError):
            traceback.print_exception(error)
        self._end(one, Failure("input" if isinstance(error, FlatlmError) else "fault", str(error)))

    def _end(self, one: "_Running", failure: Failure | None = None) -> None:
        stats = None if one.task is None else one.task.stats
        self._updates.append(Update(one.id, tuple(one.items), True, failure, stats))
        self._urgent = True
        self._drop(one)

    def _drop(self, one: "_Running") -> None:
        if one.task is not None:
            one.task.close()
            self._running.remove(one)
        else:
            self._queue.remove(one)


class _Running:
    """A job, from its coming to its end."""

    def __init__(self, job: Job, ends_at: float) -> None:
        self.id, self.request, self.ends_at = job.id, job.request, ends_at
        self.task: Task | None = None
        self.items: list[Any] = []  # not sent yet
        self.began = False
