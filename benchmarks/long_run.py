"""An hour's worth of mixed requests to a server: every well-formed one is answered, nothing grows, nothing is left behind.

    python -m benchmarks.long_run FILE [--tokenizer DIR] [--requests 36000] [--clients 6] [--threads 1]

FILE: a small and fast model with a context of 512 tokens or more, such as an export of `flatlm/assets/demo_model`. A `flatlm serve` with
3 slots and a queue of 2 is asked by several clients at once: `request_mix` says what. Each answer's form is checked; greedy ones are the
same each time, and afterwards, when they are asked for alone. Prints Markdown tables: the memory of both processes as the run goes on,
the requests by outcome, and what /metrics tells at the end. Ends with an error where anything was lost or stuck.
"""

import argparse
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.request_answers import CANCELLED, events, id_of, read, read_events
from benchmarks.request_mix import AN_HOUR, CANCEL, MOST_BODY_BYTES, MOST_TOKENS, Ask, asks
from benchmarks.served import served

CLIENTS = 6
SLOTS, QUEUE = 3, 2
"""Fewer than there are clients, so that requests wait and are refused."""
_PATIENCE_S = 60.0
GAUGES = ("flatlm_busy_slots", "flatlm_queue_depth", "flatlm_engine_restarts_total")
"""What is 0 in /metrics when nobody asks for anything."""


@dataclass(frozen=True)
class Target:
    """A server of the model "demo", and its processes."""

    url: str
    server: int
    engine: int

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_PATIENCE_S)

    def gauges(self) -> dict[str, float]:
        """GAUGES, waited for until nothing is done any more, or in vain for a while."""
        with self.http() as http:
            for _ in range(500):
                text = http.get("/metrics").text
                found = {name: float(re.search(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.M)[1]) for name in GAUGES}  # type: ignore[index]
                if not any(found.values()):
                    break
                time.sleep(0.02)
        return found


@dataclass(frozen=True)
class Taken:
    """What the server's and the engine's processes have, by /proc."""

    server_mb: float
    engine_mb: float
    files: int
    threads: int

    @classmethod
    def of(cls, target: Target) -> "Taken":
        places = [Path(f"/proc/{pid}") for pid in (target.server, target.engine)]
        server_mb, engine_mb = (int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6 for place in places)
        files, threads = (sum(len(list((place / name).iterdir())) for place in places) for name in ("fd", "task"))
        return cls(server_mb, engine_mb, files, threads)


@dataclass
class Found:
    """What came of requests."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By path and outcome: a status, "left", "cancelled", "ended first" (before its cancel came), "429, again"."""
    texts: dict[Ask, set[str]] = field(default_factory=dict)
    """Of greedy requests, by those with the same path and body."""

    def add(self, other: "Found") -> None:
        self.outcomes += other.outcomes
        for ask, texts in other.texts.items():
            self.texts.setdefault(ask, set()).update(texts)

    def count(self, outcome: str) -> int:
        return sum(count for (_, found), count in self.outcomes.items() if found == outcome)


class Client:
    """Asks, one request after the other. AssertionError where an answer is wrong, or does not come."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http = target.http()
        self.found = Found()

    def ask(self, ask: Ask) -> None:
        if ask.leave is not None:
            self._leave(ask)
            outcome = "left"
        elif ask.cancel:
            outcome = self._patiently(ask, self._cancel)
        else:
            outcome = self._patiently(ask, self._answer)
        self.found.outcomes[ask.path, outcome] += 1

    def close(self) -> None:
        self._http.close()

    def _patiently(self, ask: Ask, way: Callable[[Ask], str]) -> str:
        """Again while the queue is full."""
        latest = time.monotonic() + _PATIENCE_S
        while (outcome := way(ask)) == "429":
            assert time.monotonic() < latest, (ask, "was refused for too long")
            self.found.outcomes[ask.path, "429, again"] += 1
            time.sleep(0.02)
        return outcome

    def _answer(self, ask: Ask) -> str:
        answer = self._http.post(ask.path, content=ask.content, headers={"content-type": "application/json"})
        if answer.status_code == 429:
            return "429"
        assert answer.status_code in (ask.wrong or (200,)), (ask, answer.text)
        if ask.wrong:
            assert answer.json()["error"]["message"], ask
            return str(answer.status_code)
        if ask.body.get("stream"):
            texts, reasons = read_events(ask.path, list(events([answer.text])))
        else:
            texts, reasons = read(ask.path, answer.json())
        assert all(reasons), (ask, answer.text)
        if ask.is_greedy:
            self.found.texts.setdefault(ask, set()).add(json.dumps(texts))
        return "200"

    def _cancel(self, ask: Ask) -> str:
        """After the answer's first event. One that had ended by itself is as well."""
        with self._http.stream("POST", ask.path, json=ask.body) as answer:
            if answer.status_code == 429:
                return "429"
            assert answer.status_code == 200, (ask, answer.status_code)
            coming = events(answer.iter_text())
            first = next(coming)
            told = self._http.post(CANCEL, json={"id": id_of(first)})
            _, reasons = read_events(ask.path, [first, *coming])
        assert all(reasons), ask
        if told.status_code == 404:
            assert told.json()["error"]["message"], ask
            return "ended first"
        assert told.json() == {"id": id_of(first), "cancelled": True}, (ask, told.text)
        assert CANCELLED.get(ask.path, "stop") in reasons, (ask, reasons)
        return "cancelled"

    def _leave(self, ask: Ask) -> None:
        """Before the body is whole, before the answer, or in its middle."""
        assert ask.leave is not None
        host, port = self._target.url.removeprefix("http://").split(":")
        content = ask.content if ask.leave else ask.content[: len(ask.content) // 2]
        head = f"POST {ask.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(ask.content)}\r\n\r\n"
        with closing(socket.create_connection((host, int(port)))) as sock:
            sock.sendall(head.encode() + content)
            time.sleep(ask.leave)
            if len(content) % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets


def run(target: Target, wanted: Sequence[Ask], *, clients: int = CLIENTS) -> Found:
    """All of them, by several clients at once. AssertionError where anything is wrong, or stuck at the end."""
    asking = [Client(target) for _ in range(clients)]

    def work(place: int) -> None:
        for ask in wanted[place::clients]:
            asking[place].ask(ask)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    found = Found()
    for client in asking:
        client.close()
        found.add(client.found)
    gauges = target.gauges()
    assert not any(gauges.values()), gauges
    return found


def require_as_alone(target: Target, found: Found) -> None:
    """That each greedy request had one answer, which it has when nothing else is asked too. AssertionError."""
    client = Client(target)
    for ask, texts in found.texts.items():
        client.ask(ask)
        assert texts == client.found.texts[ask], (ask, texts)
    client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--requests", type=int, default=AN_HOUR, help="an hour's worth, where it is not said")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    options = ["--model-name", "demo", "--chat-template", "plain", "--threads", args.threads, "--slots", SLOTS, "--max-queue", QUEUE]
    options += ["--max-body", MOST_BODY_BYTES, "--max-tokens", MOST_TOKENS]
    with served(args.file, args.tokenizer, options) as said:
        target = Target(said["address"], said["pid"], engine_of(said["pid"]))
        print(f"{args.file.name}: {args.requests:,} requests by {args.clients} clients, {SLOTS} slots, a queue of {QUEUE}\n")
        print("| requests | seconds | server, MB | engine, MB | open files | threads |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
        wanted, found, seconds = asks(args.requests), Found(), 0.0
        print(row(0, seconds, target), flush=True)
        for part in range(4):
            begin, end = (args.requests * number // 4 for number in (part, part + 1))
            began = time.monotonic()
            found.add(run(target, wanted[begin:end], clients=args.clients))
            seconds += time.monotonic() - began
            print(row(end, seconds, target), flush=True)
        require_as_alone(target, found)
        print(outcomes(found))
        print(f"\nAt the end: {', '.join(f'{name} {value:.0f}' for name, value in target.gauges().items())}.")
        print(f"{len(found.texts)} greedy requests were each answered alike, and as alone.")


def engine_of(server: int) -> int:
    """The only child of the server's process."""
    (engine,) = (Path(f"/proc/{server}/task/{server}/children")).read_text().split()
    return int(engine)


def row(done: int, seconds: float, target: Target) -> str:
    taken = Taken.of(target)
    return f"| {done:,} | {seconds:,.0f} | {taken.server_mb:.1f} | {taken.engine_mb:.1f} | {taken.files} | {taken.threads} |"


def outcomes(found: Found) -> str:
    """A table of paths by outcomes."""
    paths = sorted({path for path, _ in found.outcomes})
    names = sorted({name for _, name in found.outcomes})
    lines = [["path", *names], ["---", *["---:"] * len(names)]]
    lines += [[path, *(f"{found.outcomes[path, name]:,}" for name in names)] for path in paths]
    lines.append(["in all", *(f"{found.count(name):,}" for name in names)])
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
