"""A real server on a free port, over an export of the demo model."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import flatlm
from flatlm.quantize.recipes import get_recipe
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import FlatlmServer, Served, serve
from flatlm.serving.settings import ServerSettings
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.named_templates import PLAIN
from tests.serving.encoder_files import EncoderFiles, make_encoder_files

DEMO = Path(flatlm.__file__).parent / "assets" / "demo_model"


@dataclass(frozen=True)
class Running:
    """A server, and what is known of it from within."""

    url: str
    """Such as http://127.0.0.1:41233, without /v1."""
    server: FlatlmServer
    loop: asyncio.AbstractEventLoop

    @property
    def models(self) -> dict[str, Any]:
        return self.server.config.app.state.server.models

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=options.pop("api_key", "none"), max_retries=0, timeout=60, **options)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


@contextmanager
def running(*served: Served, **settings: Any) -> Iterator[Running]:
    """In a thread of its own; all of it has ended afterwards."""
    if (slots := settings.pop("slots", None)) is not None:
        served = tuple(replace(one, spec=replace(one.spec, slots=slots)) for one in served)
    started, found, failed = threading.Event(), list[Running](), list[BaseException]()

    def ready(url: str, server: FlatlmServer) -> None:
        found.append(Running(url, server, asyncio.get_running_loop()))
        started.set()

    def work() -> None:
        try:
            asyncio.run(serve(served, ServerSettings(port=0, **settings), ready=ready))
        except BaseException as error:
            failed.append(error)
        started.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    if failed:
        raise failed[0]
    try:
        yield found[0]
    finally:
        found[0].server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert not failed


@pytest.fixture(scope="session")
def demo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a bundle: 512 tokens of context, prefill_16, prefill_128 and verify_4, no chat template."""
    path = tmp_path_factory.mktemp("demo") / "demo.litertlm"
    export(ExportRequest(DEMO, path, get_recipe("dynamic_int8"), verify_length=4))
    return path


@pytest.fixture(scope="session")
def demo(demo_file: Path) -> Served:
    """The demo model called "demo", with the template "plain": it was not tuned for chats."""
    return Served(EngineSpec(demo_file, threads=1), ("demo",), PLAIN)


@pytest.fixture(scope="session")
def server(demo: Served) -> Iterator[Running]:
    """Shared by all tests that leave it as it was."""
    with running(demo) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as found:
        yield found


@pytest.fixture
def start(demo: Served) -> Iterator[Callable[..., Running]]:
    """Starts a server with settings of its own; it ends with the test."""
    opened = []

    def make(*served: Served, **settings: Any) -> Running:
        context = running(*(served or (demo,)), **settings)
        opened.append(context)
        return context.__enter__()

    yield make
    for context in reversed(opened):
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def encoder_files(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return make_encoder_files(tmp_path_factory.mktemp("encoders"))
