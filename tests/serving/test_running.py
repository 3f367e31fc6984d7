"""A server's beginning and end."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from flatlm.errors import RuntimeFileError
from flatlm.serving import running as running_module
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import Served, listen, serve
from flatlm.serving.settings import ServerSettings
from tests.serving.conftest import Running, running
from tests.serving.test_limits import wait_for


def test_several_files_are_several_models(start: Callable[..., Running], demo: Served) -> None:
    other = replace(demo, names=("other", "alias"), spec=replace(demo.spec, slots=2))
    server = start(demo, other)
    client = server.client()
    assert [model.id for model in client.models.list()] == ["demo", "other", "alias"]
    answers = [client.completions.create(model=name, prompt="Once", temperature=0) for name in ("demo", "other", "alias")]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert [answer.model for answer in answers] == ["demo", "other", "alias"]
    assert [model["id"] for model in server.http().get("/health").json()["models"]] == ["demo", "other"]
    assert server.models["demo"].process.pid != server.models["other"].process.pid


def test_a_model_without_its_process_is_not_well(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatlm.serving.engines.engine_process._PAUSES_S", (1.0,))
    server = start()
    os.kill(server.models["demo"].process.pid, signal.SIGKILL)
    with server.http() as http:
        while (answer := http.get("/health")).status_code == 200:
            time.sleep(0.01)
        assert (answer.status_code, answer.json()["status"], answer.json()["models"][0]["ready"]) == (503, "starting", False)
        wait_for(server, ready=True, restarts=1)
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("in_time", [True, False])
def test_an_answer_under_way_ends_or_is_cut(demo: Served, monkeypatch: pytest.MonkeyPatch, in_time: bool) -> None:
    monkeypatch.setattr(running_module, "GRACE_S", 3.0 if in_time else 0.2)
    with ThreadPoolExecutor(1) as pool:
        with running(demo) as server:
            client, pid = server.client(), server.models["demo"].process.pid
            os.kill(pid, signal.SIGSTOP)
            waiting = pool.submit(client.completions.create, model="demo", prompt="Once", max_tokens=5)
            wait_for(server, busy=1)
            server.server.should_exit = True
            time.sleep(0.3)
            if in_time:
                os.kill(pid, signal.SIGCONT)
            elif waiting.exception() is None:
                raise AssertionError
        if in_time:
            assert waiting.result().usage.completion_tokens == 5
        else:
            error = waiting.exception()
            assert isinstance(error, openai.InternalServerError)
            assert error.status_code == 503


def test_one_file_that_cannot_be_served_closes_the_others(demo: Served, tmp_path: Path) -> None:
    broken = Served(EngineSpec(tmp_path / "none.tflite"), ("none",))
    with pytest.raises(RuntimeFileError, match=r"none\.tflite"), running(demo, broken):
        pass


def test_an_address_that_is_taken(demo: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServerSettings(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="give another --host or --port"):
            asyncio.run(serve([demo], settings, ready=lambda *_: None))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_addresses(host: str) -> None:
    with listen(ServerSettings(host=host, port=0)) as listening:
        assert running_module.address(listening).startswith(("http://127.0.0.1:", "http://[::1]:"))
