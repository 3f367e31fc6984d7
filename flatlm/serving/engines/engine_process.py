"""The server's side of an engine's process: starts it, sends it jobs, passes on what they give, starts it again where it is lost."""

import asyncio
import logging
import sys
import time
import weakref
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Generic, Protocol, Self, TypeVar

from flatlm.errors import RuntimeFileError
from flatlm.generative.own_processes import ending_of, environment_of_our_own
from flatlm.serving.engines.channel import pack, read_message
from flatlm.serving.engines.messages import Cancel, EngineSpec, Failed, Failure, Job, Opened, Update
from flatlm.serving.errors import ApiError, BadRequest, Deadline, EngineDown, EngineLost, QueueFull

_LOG = logging.getLogger(__name__)
Item = TypeVar("Item")
MODULE = "flatlm.serving.engines.engine_main"
GRACE_S = 10.0
"""Deadlines are kept by the engine, between two steps; a step that takes longer than this beyond one is not waited for."""
_FAREWELL_S = 2.0
_PAUSES_S = (0.0, 0.5, 2.0, 8.0)
"""Before it is started again, after so many starts in a row that failed, or ended at once."""
_HEALTHY_S = 10.0
"""A process that lived as long was well."""


class Observer(Protocol):
    """Who counts what an engine does."""

    def began(self, seconds: float) -> None:
        """A job's first item came so long after the job."""

    def ended(self, stats: Any, seconds: float | None) -> None:
        """A job has ended so long after its first item; None: nobody waited for it any more."""


class EngineProcess:
    """One engine in a process of its own. For one event loop."""

    def __init__(self, spec: EngineSpec, *, name: str, most_waiting: int) -> None:
        """`name`: of the model, in messages. `most_waiting`: jobs beyond those that have a slot."""
        self.spec, self.name = spec, name
        self.facts: Mapping[str, Any] = {}
        self.pid: int | None = None
        """Of the process, while it is there."""
        self.restarts = 0
        self.observer: Observer | None = None
        self._most_waiting = most_waiting
        # Weakly: an answer that nobody holds any more stops its job, however it was left.
        self._answers: dict[int, weakref.ref[Answer[Any]]] = {}
        self._numbers = count(1)
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._unsent: list[int] = []
        self._trouble: str | None = None
        self._closing = False

    @property
    def ready(self) -> bool:
        return self.pid is not None

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return min(len(self._answers), self.spec.slots)

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return max(0, len(self._answers) - self.spec.slots)

    @property
    def most(self) -> int:
        """Jobs that it takes at once."""
        return self.spec.slots + self._most_waiting

    async def start(self) -> None:
        """Returns when the file is loaded. Raises RuntimeFileError where it cannot be."""
        process = await self._launch()
        self._keeper = asyncio.create_task(self._keep(process))
        self._keeper.add_done_callback(self._kept)

    async def close(self) -> None:
        """Ends the process; what it was answering ends with EngineDown, before that."""
        self._closing = True
        self._fail_all(EngineDown("the server is ending"))
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._keeper is not None:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._keeper], timeout=_FAREWELL_S)
            self._keeper.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self.pid = None

    def submit(self, request: Any, *, deadline: float | None = None) -> "Answer[Any]":
        """A job for the engine. Raises QueueFull, EngineDown. `deadline`: an instant of time.monotonic()."""
        if self._closing:
            raise EngineDown("the server is ending")
        if self._trouble is not None:
            raise EngineDown(self._trouble)
        if self.waiting >= self._most_waiting and len(self._answers) >= self.spec.slots:
            raise QueueFull(self.waiting)
        answer: Answer[Any] = Answer(self, next(self._numbers), request, deadline)
        self._answers[answer.id] = weakref.ref(answer)
        if self.ready:
            self._send_job(answer)
        else:
            self._unsent.append(answer.id)
        return answer

    def cancel(self, answer: "Answer[Any]") -> None:
        """Nobody waits for it any more."""
        if self._answers.pop(answer.id, None) is None:
            return
        if answer.id in self._unsent:
            self._unsent.remove(answer.id)
        else:
            self._send(Cancel(answer.id))

    def _send_job(self, answer: "Answer[Any]") -> None:
        seconds = None if answer.deadline is None else answer.deadline - time.monotonic()
        self._send(Job(answer.id, answer.request, seconds))

    def _send(self, message: object) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(pack(message))

    async def _launch(self) -> asyncio.subprocess.Process:
        """A process that has loaded the file."""
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment_of_our_own(),
                start_new_session=True,  # Ctrl-C is for the server alone, which ends it
            )
        except OSError as error:
            raise RuntimeFileError(
                f"{self.spec.file}: the process that is to run it cannot be started: {error.strerror or error}"
            ) from error
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(pack(self.spec))
            first = await read_message(process.stdout)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise RuntimeFileError(f"{self.spec.file}: the process that was to run it {await _ending(process)}") from error
        except asyncio.CancelledError:
            process.kill()
            raise
        if isinstance(first, Failed):
            await process.wait()
            raise RuntimeFileError(first.message)
        assert isinstance(first, Opened)
        self.pid, self.facts = first.pid, first.facts
        return process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Passes on what the engine says, for as long as the server lives."""
        failures = 0
        while True:
            began = time.monotonic()
            await self._listen(process)
            self.pid = None
            how = await _ending(process)
            if self._closing:
                return
            _LOG.warning("flatlm: the process that runs %s %s; it is started again", self.name, how)
            self._fail_all(EngineLost(self.name, how), but=self._unsent.copy())
            failures = 0 if time.monotonic() - began > _HEALTHY_S else failures
            process, failures = await self._start_again(failures)
            unsent, self._unsent = self._unsent, []
            for number in unsent:
                if (answer := self._living(number)) is not None:
                    self._send_job(answer)

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """Requests are not left waiting for a keeper that has failed, which it does by a fault in FlatLM alone."""
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        _LOG.error("flatlm: %s is no longer kept running; start the server again", self.name, exc_info=error)
        self.pid, self._trouble = None, f"{self.name} is no longer kept running, by a fault in FlatLM ({type(error).__name__})"
        self._fail_all(EngineDown(self._trouble))

    async def _start_again(self, failures: int) -> tuple[asyncio.subprocess.Process, int]:
        """The new process, and how often in a row one was started. Where it does not start, requests are refused until it does."""
        while True:
            await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1
            try:
                process = await self._launch()
            except RuntimeFileError as error:
                self._trouble = str(error)
                self._fail_all(EngineDown(self._trouble))
            else:
                self._trouble = None
                self.restarts += 1
                return process, failures

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Until the process ends."""
        assert process.stdout is not None
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                for update in await read_message(process.stdout):
                    self._pass_on(update)

    def _pass_on(self, update: Update) -> None:
        answer = self._living(update.job)
        if answer is not None:
            if update.done:
                del self._answers[update.job]
            answer._add(update)
        if self.observer is not None:
            if answer is not None and answer.began_at is not None and not answer.told:
                answer.told = True
                self.observer.began(answer.began_at - answer.came_at)
            if update.done:
                began = None if answer is None else answer.began_at
                self.observer.ended(update.stats, None if began is None else time.monotonic() - began)

    def _fail_all(self, error: ApiError, but: Collection[int] = ()) -> None:
        for number in [number for number in self._answers if number not in but]:
            answer = self._living(number)
            del self._answers[number]
            if number in self._unsent:
                self._unsent.remove(number)
            if answer is not None:
                answer._fail(error)

    def _living(self, number: int) -> "Answer[Any] | None":
        found = self._answers.get(number)
        return None if found is None else found()


class Answer(AsyncIterator[list[Item]], Generic[Item]):
    """What a job gives, as it comes: a list of items each time. It ends with the answer; leaving it, `aclose`, stops the job.

    Raises BadRequest for what the engine finds wrong with the request, Deadline, EngineLost, EngineDown, and ApiError (500) for a fault.
    """

    def __init__(self, process: EngineProcess, number: int, request: Any, deadline: float | None) -> None:
        """Use `EngineProcess.submit`."""
        self.id, self.request, self.deadline = number, request, deadline
        self.stats: Any = None
        """What the engine tells at the end: of a text its `session.TurnStats`."""
        self.came_at = time.monotonic()
        self.began_at: float | None = None
        """When its first item came."""
        self.told = False
        self._process = process
        self._items: list[Item] = []
        self._error: ApiError | None = None
        self._done = False
        self._news = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Item]:
        if not (self._items or self._done):
            await self._wait()
        if self._items:
            items, self._items = self._items, []
            self._news.clear()
            return items
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def stop(self, last: Item) -> bool:
        """Ends the answer here, with one more item. False where it had ended."""
        if self._done:
            return False
        self.cancel()
        self._items.append(last)
        self._news.set()
        return True

    async def aclose(self) -> None:
        """The same."""
        self.cancel()

    def __del__(self) -> None:
        self.cancel()

    async def _wait(self) -> None:
        late = None if self.deadline is None else max(0.0, self.deadline - time.monotonic()) + GRACE_S
        self._news.clear()
        try:
            async with asyncio.timeout(late):
                await self._news.wait()
        except TimeoutError:
            self.cancel()
            self._error = Deadline()

    def _add(self, update: Update) -> None:
        self._items.extend(update.items)
        if update.items and self.began_at is None:
            self.began_at = time.monotonic()
        if update.done:
            self.stats, self._done = update.stats, True
            self._error = None if update.failure is None else _error(update.failure)
        self._news.set()

    def _fail(self, error: ApiError) -> None:
        self._error, self._done = error, True
        self._news.set()

    def cancel(self) -> None:
        """Stops the job, where it has not ended."""
        if not self._done:
            self._done = True
            self._process.cancel(self)


def _error(failure: Failure) -> ApiError:
    if failure.kind == "input":
        return BadRequest(failure.message)
    return Deadline() if failure.kind == "deadline" else ApiError(500, f"a fault in FlatLM: {failure.message}", code="fault")


async def _ending(process: asyncio.subprocess.Process) -> str:
    """How a process ended: it is waited for, and not for long."""
    try:
        code = await asyncio.wait_for(process.wait(), _FAREWELL_S)
    except TimeoutError:
        process.kill()
        code = await process.wait()
    return ending_of(code)
