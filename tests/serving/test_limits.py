"""What is refused before it costs anything, and clients that go away or dawdle. Sockets where a client would be too polite."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import openai
import pytest

from flatlm.serving.engines import engine_process
from tests.serving.conftest import Running, running
from tests.serving.routes.test_metrics import read

LONG = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def everything(sock: socket.socket) -> bytes:
    """Until the server closes, which need not wait for what it did not read: then, after what it said, comes a reset."""
    data = b""
    try:
        while part := sock.recv(1 << 16):
            data += part
    except ConnectionResetError:
        if not data:
            raise
    return data


def refusal(sock: socket.socket, status: int) -> dict[str, str]:
    """What OpenAI's error object says, before the server closes."""
    head, _, body = everything(sock).rpartition(b"\r\n\r\n")
    said = head[head.rindex(b"HTTP/1.1") :].lower().split(b"\r\n")
    assert int(said[0].split()[1]) == status
    assert b"connection: close" in said and b"content-type: application/json" in said
    return error_in(json.loads(body))


def error_in(answer: dict[str, Any]) -> dict[str, str]:
    """OpenAI's error object."""
    error: dict[str, str] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@contextmanager
def stopped(server: Running) -> Iterator[None]:
    """The engine stands still meanwhile."""
    pid = server.models["demo"].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_until(found: Callable[[], bool]) -> None:
    for _ in range(1000):
        if found():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to be")


def wait_for(server: Running, **expected: int) -> None:
    """Until /health says so of the model."""
    with server.http() as http:
        wait_until(lambda: expected.items() <= http.get("/health").json()["models"][0].items())


def is_error(answer: httpx.Response, status: int, **expected: Any) -> str:
    """That it is OpenAI's error object; its message."""
    assert answer.status_code == status, answer.text
    error = error_in(answer.json())
    assert {key: error[key] for key in expected} == expected
    assert "\n" not in error["message"]
    return error["message"]


class TestKeys:
    @pytest.fixture(scope="class")
    def locked(self, demo: Any) -> Iterator[Running]:
        with running(demo, api_keys=("first", "zweiter-schlüssel")) as found:
            yield found

    @pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nothing", "/v1/completions"])
    def test_without_one_nothing_is_told(self, locked: Running, path: str) -> None:
        with locked.http() as http:
            is_error(http.get(path), 401, code="invalid_api_key", type="authentication_error")
            assert http.get("/health").status_code == 200

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"authorization": "Bearer first"}, 200),
            ({"authorization": "bearer  first"}, 200),
            ({"x-api-key": "first"}, 200),
            ({"authorization": "Bearer zweiter-schlüssel".encode()}, 200),
            ({"authorization": "Bearer firs"}, 401),
            ({"authorization": "Bearer first2"}, 401),
            ({"authorization": "Bearer"}, 401),
            ({"authorization": "Basic first"}, 401),
            ({"authorization": "first"}, 401),
            ({"x-api-key": ""}, 401),
        ],
    )
    def test_one_of_them_is_needed(self, locked: Running, headers: dict[str, Any], status: int) -> None:
        with locked.http() as http:
            assert http.get("/v1/models", headers=headers).status_code == status

    def test_the_official_client_says_so(self, locked: Running) -> None:
        with pytest.raises(openai.AuthenticationError, match="a key is needed"):
            locked.client(api_key="wrong").models.list()
        assert locked.client(api_key="first").models.list().data


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:5", 200),
        ("127.8.8.8", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("evil.example:8000", 400),
        ("localhost.evil.example", 400),
        ("10.0.0.1", 400),
        ("", 400),
    ],
)
def test_names_of_other_machines(http: httpx.Client, name: str, status: int) -> None:
    answer = http.get("/v1/models", headers={"host": name})
    assert answer.status_code == status
    if status == 400:
        assert "--allow-host" in is_error(answer, 400, code="unknown_host")


def test_a_name_that_is_allowed(start: Callable[..., Running]) -> None:
    server = start(allowed_hosts=("Chat.example",))
    with server.http() as http:
        assert http.get("/health", headers={"host": "chat.example:443"}).status_code == 200


class TestBodies:
    @pytest.fixture(scope="class")
    def small(self, demo: Any) -> Iterator[Running]:
        with running(demo, max_body_bytes=5000, body_timeout_s=1.0, header_timeout_s=1.0) as found:
            yield found

    @pytest.fixture(autouse=True)
    def still_answers(self, small: Running) -> Iterator[None]:
        yield
        assert small.client().completions.create(model="demo", prompt="Once").choices[0].text

    def test_as_large_as_may_be(self, small: Running) -> None:
        body = json.dumps({"model": "demo", "prompt": "Once", "max_tokens": 1, "user": ""})
        with small.http() as http:
            body = body.replace('"user": "', '"user": "' + "x" * (5000 - len(body)))
            assert http.post("/v1/completions", content=body, headers={"content-type": "application/json"}).status_code == 200
            body = body.replace("xx", "xxx", 1)
            is_error(http.post("/v1/completions", content=body), 413, code="body_too_large")

    def test_chunks_without_a_length(self, small: Running) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield b"x" * 100

        with small.http() as http:
            is_error(http.post("/v1/completions", content=chunks()), 413)

    def test_chunks_without_an_end(self, small: Running) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(post(b"", "Transfer-Encoding: chunked"))
            with pytest.raises(OSError):
                for _ in range(100_000):
                    sock.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")

    @pytest.mark.parametrize("length", ["99999999999999999999999999", "-5", "5, 6", "abc", "0x10"])
    def test_absurd_lengths(self, small: Running, length: str) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(post(b"{}", f"Content-Length: {length}"))
            assert everything(sock).split()[1] in (b"400", b"413")

    def test_a_body_that_does_not_come(self, small: Running) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(post(b'{"model"', "Content-Length: 100"))
            assert refusal(sock, 408)["code"] == "body_timeout"

    def test_a_body_that_comes_a_byte_at_a_time(self, small: Running) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(post(b"", "Content-Length: 1000"))
            with pytest.raises(OSError):
                for _ in range(200):
                    sock.sendall(b" ")
                    time.sleep(0.05)

    def test_nothing_comes(self, small: Running) -> None:
        with closing(connect(small)) as sock:
            assert everything(sock) == b""

    @pytest.mark.parametrize("begun", [b"G", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
    @pytest.mark.parametrize("again", [False, True])
    def test_headers_that_do_not_come(self, small: Running, begun: bytes, again: bool) -> None:
        with closing(connect(small)) as sock:
            if again:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
            sock.sendall(begun)
            assert refusal(sock, 408)["code"] == "header_timeout"

    def test_headers_that_come_a_byte_at_a_time_after_an_answer(self, small: Running) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
            with pytest.raises(OSError):
                for letter in b"GET /" + b"a" * 200:
                    sock.sendall(bytes([letter]))
                    time.sleep(0.05)

    @pytest.mark.parametrize(
        "data",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"\r\n\r\n\r\n\x00\r\n\r\n",
            b"GET / HTTP/one\r\n\r\n",
            b"A" * 100_000,
            post(b"", "a b: c"),
        ],
    )
    def test_bytes_that_are_no_request(self, small: Running, data: bytes) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(data)
            assert refusal(sock, 400)["code"] == "invalid_http"

    def test_a_chunk_that_is_none(self, small: Running) -> None:
        with closing(connect(small)) as sock:
            sock.sendall(post(b"5\r\n{    \r\nxyz\r\n", "Transfer-Encoding: chunked"))
            assert refusal(sock, 400)["code"] == "invalid_http"

    def test_bytes_behind_a_request(self, small: Running) -> None:
        body = json.dumps(LONG | {"stream": True, "max_tokens": 20}).encode()
        with closing(connect(small)) as sock:
            sock.sendall(post(body + b"\x00 \r\n\r\n", f"Content-Length: {len(body)}"))
            said = everything(sock)
        answer, _, refused = said.rpartition(b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200") and b"[DONE]" in answer
        assert refused.startswith(b"HTTP/1.1 400") and b"invalid_http" in refused


def test_too_many_connections(start: Callable[..., Running]) -> None:
    server = start(max_connections=2, header_timeout_s=60)
    with closing(connect(server)), closing(connect(server)) as second, closing(connect(server)) as third:
        third.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        error = refusal(third, 503)
        assert error["code"] == "too_many_connections" and "2 connections" in error["message"]
        held = [connect(server) for _ in range(3)]
        assert held[2].recv(1) == b""  # the fifth that is open at once
        for sock in held:
            sock.close()
        second.close()
        with server.http() as http:
            wait_until(lambda: http.get("/health").status_code == 200)


class TestQueue:
    def test_more_than_may_wait_are_refused(self, start: Callable[..., Running]) -> None:
        server = start(slots=1, max_queue=1)
        client = server.client()
        with ThreadPoolExecutor(3) as pool, server.http() as http:
            with stopped(server):
                waiting = [pool.submit(client.completions.create, model="demo", prompt="Once", seed=1) for _ in range(2)]
                wait_for(server, busy=1, queue=1)
                refused = http.post("/v1/completions", json={"model": "demo", "prompt": "Once"})
                is_error(refused, 429, code="queue_full")
                assert int(refused.headers["retry-after"]) >= 1
                is_error(http.post("/v1/chat/completions", json=CHAT | {"n": 2, "stream": True}), 429)
                wait_for(server, busy=1, queue=1)
                for path, asked in (("chat/completions", CHAT), ("completions", LONG | {"prompt": ["Once"] * 3})):
                    is_error(http.post(f"/v1/{path}", json={"n": 3} | asked), 400, param="n")  # there is never room for 3
            assert len({answer.result().choices[0].text for answer in waiting}) == 1
        wait_for(server, busy=0, queue=0)

    def test_a_request_that_waits_too_long(self, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_process, "GRACE_S", 0.1)
        server = start(timeout_s=0.2)
        with server.http() as http:
            with stopped(server):
                is_error(http.post("/v1/completions", json=LONG), 504, code="timeout")
                is_error(http.post("/v1/completions", json=LONG | {"stream": True}), 504)
            wait_for(server, busy=0)

    def test_an_answer_that_takes_too_long_is_cut(self, start: Callable[..., Running]) -> None:
        server = start(timeout_s=0.3)
        client = server.client()
        stream = client.completions.create(
            **{k: v for k, v in LONG.items() if k != "ignore_eos"}, stream=True, extra_body={"ignore_eos": True}
        )
        assert next(stream)
        with stopped(server):
            time.sleep(0.5)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"


CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Once"}]}


class TestClientsThatLeave:
    @pytest.fixture(scope="class")
    def narrow(self, demo: Any) -> Iterator[Running]:
        with running(demo, slots=1) as found:
            yield found

    @pytest.fixture(autouse=True)
    def still_answers(self, narrow: Running) -> Iterator[None]:
        """And wrote next to nothing for who left."""
        before = read(narrow).get(("flatlm_tokens_total", "written", "demo"), 0)
        yield
        answer = narrow.client().completions.create(model="demo", prompt="Two", max_tokens=3)
        assert answer.usage is not None and answer.usage.completion_tokens == 3
        assert read(narrow)["flatlm_tokens_total", "written", "demo"] - before < 2000

    @pytest.mark.parametrize("body", [LONG, LONG | {"stream": True}, LONG | {"n": 8, "stream": True}, LONG | {"n": 8}])
    @pytest.mark.parametrize("how", ["close", "reset"])
    def test_before_the_first_token(self, narrow: Running, body: dict[str, Any], how: str) -> None:
        data = json.dumps(body).encode()
        with stopped(narrow):
            sock = connect(narrow)
            sock.sendall(post(data, f"Content-Length: {len(data)}"))
            wait_for(narrow, busy=1, queue=body.get("n", 1) - 1)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            wait_for(narrow, busy=0, queue=0)

    def test_in_the_middle_of_a_stream(self, narrow: Running) -> None:
        body = LONG | {"stream": True, "n": 8}
        with narrow.http() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_raw(1))
            with stopped(narrow):
                answer.close()
                wait_for(narrow, busy=0, queue=0)
