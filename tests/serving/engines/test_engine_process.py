"""The process that runs a file, from outside: its start, its end, and what each side loads."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig
from flatlm.serving.engines import engine_process
from flatlm.serving.engines.engine_process import EngineProcess
from flatlm.serving.engines.messages import EngineSpec, WriteRequest
from flatlm.serving.errors import Deadline, EngineDown, EngineLost, QueueFull
from tests.serving.conftest import Running

GREEDY = GenerationConfig(max_new_tokens=400, ignore_eos=True)
IDS = (1, 517, 594, 261, 429)


def with_process(file: Path, use: Callable, *, slots: int = 2, most_waiting: int = 1) -> None:
    """Runs `await use(process)` on a started process."""

    async def main() -> None:
        process = EngineProcess(EngineSpec(file, threads=1, slots=slots), name="demo", most_waiting=most_waiting)
        await process.start()
        try:
            await asyncio.wait_for(use(process), 60)
        finally:
            await process.close()
            assert not process.ready

    asyncio.run(main())


async def text(process: EngineProcess, config: GenerationConfig = GREEDY) -> str:
    return "".join([piece.text async for pieces in process.submit(WriteRequest(IDS, config)) for piece in pieces])


def test_an_answer_comes_in_batches(demo_file: Path) -> None:
    async def use(process: EngineProcess) -> None:
        batches = [pieces async for pieces in process.submit(WriteRequest(IDS, GREEDY))]
        assert len(batches[0]) == 1
        assert sum(map(len, batches)) == 401
        assert len(batches) < 200
        assert batches[-1][-1].finish_reason == "length"

    with_process(demo_file, use)


@pytest.mark.parametrize("how", ["close", "forget"])
def test_an_answer_that_is_left_frees_its_slot(demo_file: Path, how: str) -> None:
    async def use(process: EngineProcess) -> None:
        answer = process.submit(WriteRequest(IDS, GREEDY))
        await anext(answer)
        assert process.busy == 1
        if how == "close":
            await answer.aclose()
        del answer
        assert process.busy == 0
        assert await text(process)

    with_process(demo_file, use, slots=1)


def test_the_queue_is_bounded(demo_file: Path) -> None:
    async def use(process: EngineProcess) -> None:
        answers = [process.submit(WriteRequest(IDS, GREEDY)) for _ in range(3)]
        assert (process.busy, process.waiting) == (2, 1)
        with pytest.raises(QueueFull):
            process.submit(WriteRequest(IDS, GREEDY))
        await answers[2].aclose()
        assert await text(process)
        assert len([answer async for answer in answers[0]]) > 0

    with_process(demo_file, use)


def test_a_killed_process_is_started_again(demo_file: Path) -> None:
    async def use(process: EngineProcess) -> None:
        expected, killed = await text(process), process.pid
        os.kill(killed, signal.SIGSTOP)
        answer = process.submit(WriteRequest(IDS, GREEDY))
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(EngineLost, match="was ended by SIGKILL"):
            await anext(answer)
        assert await text(process) == expected  # it waits for the new one
        assert process.restarts == 1
        assert process.pid != killed

    with_process(demo_file, use)


def test_a_process_that_cannot_be_started_again_refuses(demo_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_PAUSES_S", (0.0, 0.1))
    file = tmp_path / "copy.litertlm"
    file.write_bytes(demo_file.read_bytes())

    async def use(process: EngineProcess) -> None:
        file.unlink()
        os.kill(process.pid, signal.SIGKILL)
        while process.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineDown, match=r"copy.litertlm"):
            await text(process)
        with pytest.raises(EngineDown):
            process.submit(WriteRequest(IDS, GREEDY))
        file.write_bytes(demo_file.read_bytes())
        while not process.ready:
            await asyncio.sleep(0.05)
        assert await text(process)

    with_process(file, use)


def test_a_machine_that_starts_no_process_for_a_while(demo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_PAUSES_S", (0.0, 0.1))
    real = asyncio.create_subprocess_exec

    async def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async def use(process: EngineProcess) -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
        os.kill(process.pid, signal.SIGKILL)
        while process.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineDown, match="cannot be started: Cannot allocate memory"):
            await text(process)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", real)
        while not process.ready:
            await asyncio.sleep(0.05)
        assert await text(process)

    with_process(demo_file, use)


def test_a_fault_of_who_keeps_it_running_is_told(demo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(process: EngineProcess) -> None:
        monkeypatch.setattr(process, "_start_again", None)
        answer = process.submit(WriteRequest(IDS, GREEDY))
        await anext(answer)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises((EngineLost, EngineDown)):
            [pieces async for pieces in answer]
        while process.ready:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        with pytest.raises(EngineDown, match="fault in FlatLM"):
            await text(process)

    with_process(demo_file, use)


def test_a_process_that_hangs_is_not_waited_for(demo_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "GRACE_S", 0.1)

    async def use(process: EngineProcess) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(Deadline):
            await anext(process.submit(WriteRequest(IDS, GREEDY), deadline=time.monotonic() + 0.1))
        assert process.busy == 0
        os.kill(process.pid, signal.SIGCONT)
        assert await text(process)

    with_process(demo_file, use)


def test_a_job_that_waited_too_long_is_told_so(demo_file: Path) -> None:
    async def use(process: EngineProcess) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        answer = process.submit(WriteRequest(IDS, GREEDY), deadline=time.monotonic() + 0.01)
        os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(Deadline):
            assert [pieces async for pieces in answer][-1][-1].finish_reason == "length"
            raise Deadline  # where it had begun in time, it was cut

    with_process(demo_file, use)


@pytest.mark.parametrize("name", ["missing.litertlm", "notes.litertlm", "notes.tflite"])
def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    if name.startswith("notes"):
        (tmp_path / name).write_text("no model")

    async def main() -> None:
        process = EngineProcess(EngineSpec(tmp_path / name), name="x", most_waiting=1)
        with pytest.raises(RuntimeFileError, match=name) as found:
            await process.start()
        assert "\n" not in str(found.value)
        await process.close()

    asyncio.run(main())


def test_a_closed_process_takes_nothing(demo_file: Path) -> None:
    async def use(process: EngineProcess) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        answer = process.submit(WriteRequest(IDS, GREEDY))
        await process.close()
        with pytest.raises(EngineDown, match="ending"):
            await anext(answer)
        with pytest.raises(EngineDown, match="ending"):
            process.submit(WriteRequest(IDS, GREEDY))

    with_process(demo_file, use)


def test_running_requests_end_with_an_error_when_the_engine_is_killed(start: Callable[..., Running]) -> None:
    server = start(slots=2)
    client, process = server.client(), server.models["demo"].process
    long = {"max_tokens": 400, "n": 16, "extra_body": {"ignore_eos": True}}  # so that it is not done on a busy machine before it is ended
    stream = client.completions.create(model="demo", prompt="Once", stream=True, **long)
    assert next(stream).choices
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="was ended by SIGKILL"):
        list(stream)
    assert client.completions.create(model="demo", prompt="Once").choices[0].text
    os.kill(process.pid, signal.SIGSTOP)
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.completions.create, model="demo", prompt="Once")
        while http.get("/health").json()["models"][0]["busy"] == 0:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as found:
            waiting.result()
    assert (found.value.status_code, found.value.code) == (500, "engine_lost")
    assert client.completions.create(model="demo", prompt="Once").choices[0].text


LOADED = """
import sys
{code}
runtime = ("torch", "transformers", "ai_edge_litert.compiled_model", "ai_edge_litert.interpreter")
heavy = (*runtime, "fastapi", "starlette", "uvicorn", "pydantic")
print(*[name for name in heavy if name in sys.modules])
"""


def loaded(code: str) -> list[str]:
    """The heavy modules that code leaves loaded."""
    return subprocess.run([sys.executable, "-c", LOADED.format(code=code)], capture_output=True, text=True, check=True).stdout.split()


def test_the_engines_side_never_loads_the_web_servers() -> None:
    assert loaded("import flatlm.serving.engines.engine_main, flatlm.serving.engines.text_engine") == []


def test_the_web_servers_side_never_loads_the_runtime(demo_file: Path) -> None:
    code = f"""
import asyncio, httpx
from pathlib import Path
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import Served, serve
from flatlm.serving.settings import ServerSettings

async def ask(url, server):
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/v1/completions", json={{"model": "m", "prompt": "Once", "echo": True, "logprobs": 1}})
        assert answer.status_code == 200, answer.text
    server.should_exit = True

tasks = []
served = Served(EngineSpec(Path({str(demo_file)!r}), threads=1), ("m",))
asyncio.run(serve([served], ServerSettings(port=0), ready=lambda url, server: tasks.append(asyncio.create_task(ask(url, server)))))
tasks[0].result()
"""
    assert set(loaded(code)) == {"fastapi", "starlette", "uvicorn", "pydantic"}
