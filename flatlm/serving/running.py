"""From files to a server that listens, and its end."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvicorn

from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import read_content
from flatlm.serving.app import Model, create_app
from flatlm.serving.encoder_model import EncoderModel
from flatlm.serving.engines.messages import ENCODER, EngineSpec
from flatlm.serving.protocol import PatientProtocol
from flatlm.serving.settings import ServerSettings
from flatlm.serving.text_model import TextModel

GRACE_S = 3.0
"""For answers to end by themselves when the server is to end; then they are cut, with an error."""
_CUT_S = 3.0
"""For that error to be sent."""


@dataclass(frozen=True)
class Served:
    """A file to serve, and what it is called."""

    spec: EngineSpec
    names: tuple[str, ...]
    """The first is its own; the others are as good."""
    chat_template: str | None = None
    """Jinja text, in place of the file's own."""


class FlatlmServer(uvicorn.Server):
    """A uvicorn server over models, which end with it."""

    def __init__(self, models: Mapping[str, Model], settings: ServerSettings) -> None:
        protocol = type("Protocol", (PatientProtocol,), {"settings": settings})
        super().__init__(
            uvicorn.Config(
                create_app(models, settings),
                http=protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=int(max(1, settings.header_timeout_s)),
                timeout_graceful_shutdown=int(GRACE_S + _CUT_S),
            )
        )
        self._models = list(dict.fromkeys(models.values()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers under way may end, for a while; then they get an error."""

        async def cut() -> None:
            await asyncio.sleep(GRACE_S)
            await close(self._models)

        cutting = asyncio.create_task(cut())
        await super().shutdown(sockets)
        cutting.cancel()


async def serve(served: Sequence[Served], settings: ServerSettings, *, ready: Callable[[str, FlatlmServer], None]) -> None:
    """Serves until a signal, or `should_exit` of the server that `ready` is given, with its address, when it answers.

    Raises RuntimeFileError, TokenizerError where a file cannot be served, and OSError where the address cannot be listened on.
    """
    with listen(settings) as listening:
        models = await open_models(served, settings)
        try:
            server = FlatlmServer(models, settings)
            serving = asyncio.create_task(_serve(server, listening))
            while not (server.started or serving.done()):
                await asyncio.sleep(0.01)
            if server.started:
                ready(address(listening), server)
            await serving
        finally:
            await close(list(dict.fromkeys(models.values())))


async def open_models(served: Sequence[Served], settings: ServerSettings) -> dict[str, Model]:
    """Each file's model, by all its names. Raises RuntimeFileError, TokenizerError: then none stays open."""
    by_name: dict[str, Served] = {}
    for one in served:
        for name in one.names:
            if name in by_name:
                raise RuntimeFileError(
                    f"{by_name[name].spec.file} and {one.spec.file} would both be called {name}: give each a --model-name of its own"
                )
            by_name[name] = one
    models: dict[str, Model] = {}
    try:
        for one in served:
            models |= dict.fromkeys(one.names, await _open(one, settings))
    except BaseException:
        await close(list(models.values()))
        raise
    return models


async def _open(one: Served, settings: ServerSettings) -> Model:
    """By what the file says that it is."""
    if read_content(one.spec.file).kind == ENCODER:
        return await EncoderModel.open(replace(one.spec, kind="encoder"), name=one.names[0], max_queue=settings.max_queue)
    return await TextModel.open(one.spec, name=one.names[0], chat_template=one.chat_template, max_queue=settings.max_queue)


async def close(models: Sequence[Model]) -> None:
    """Ends their processes."""
    await asyncio.gather(*(model.close() for model in models))


@contextmanager
def listen(settings: ServerSettings) -> Iterator[socket.socket]:
    """A socket that listens where the settings say. OSError, which names the address, where it cannot."""
    place = (settings.host, settings.port)
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found)
            listening.listen(socket.SOMAXCONN)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        way_out = f"cannot listen there: {error.strerror}; give another --host or --port"
        raise OSError(error.errno, way_out, f"{settings.host}:{settings.port}") from error
    with listening:
        yield listening


def address(listening: socket.socket) -> str:
    """`http://127.0.0.1:8000`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(server: FlatlmServer, listening: socket.socket) -> None:
    """Uvicorn sends itself the signal again that ended it; by then all is said."""
    with _unheard():
        await server.serve(sockets=[listening])


@contextmanager
def _unheard() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(number: int, frame: Any) -> None:
        pass

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
