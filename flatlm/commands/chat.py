"""flatlm chat FILE|CHECKPOINT"""

import argparse
import dataclasses
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from flatlm.commands import base, sampling_options, served
from flatlm.commands.chat_commands import Chat, Leave, described
from flatlm.commands.chat_input import messages
from flatlm.errors import FlatlmError
from flatlm.generative.chatting.conversation import WHEN_FULL, Asked, Conversation
from flatlm.generative.chatting.params import params_of
from flatlm.generative.chatting.saved import require_unicode
from flatlm.generative.session import Session
from flatlm.generative.speculation import counts_of, describe_counts, open_runner, recorded_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    served.add_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all")
    parser.add_argument(
        "--when-full", choices=WHEN_FULL, default=WHEN_FULL[0], help="a full context: leave out the oldest turns, or answer no more"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="end an answer after so many tokens")
    sampling_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    config = sampling_options.config_of(args)
    if args.system is not None:
        require_unicode(args.system, "--system")
    (model,) = served.open_served(args, plain=True)
    with open_runner(model.file, model.draft, threads=model.threads) as runner:
        runner.require_left_to_right()
        session = Session(runner, model.tokenizer)
        conversation = Conversation(
            session, model.tokenizer, template=model.template, system=args.system, config=config, when_full=args.when_full
        )
        talk = Talk(conversation, quiet=args.json)
        if sys.stdin.isatty() and sys.stdout.isatty() and not args.json:
            from flatlm.commands.chat_terminal import typed

            talk.notice(f"{model.name}: context of {runner.cache_length:,} tokens; /help tells what can be typed")
            lines: Iterator[str] = typed(talk.notice)
        else:
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # bytes of another encoding are refused line by line
            lines = messages(sys.stdin)
        status = talk.go_on(lines)
        if not args.json and (counts := counts_of(runner)) is not None:
            talk.notice(describe_counts(counts))
    if args.json:
        base.print_json(_record(model.name, conversation))
    return status


class Talk:
    """A conversation at a terminal, or through pipes. `quiet`: nothing but complaints is printed, and those to stderr."""

    def __init__(self, conversation: Conversation, *, quiet: bool = False) -> None:
        self._conversation, self._quiet = conversation, quiet
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty() and not quiet
        self._chat = Chat(conversation, self._say)

    def go_on(self, lines: Iterator[str]) -> int:
        """Take message after message; 2 where one of a pipe's was refused, else 0: at a terminal the user has seen it."""
        status = 0
        for line in lines:
            try:
                self._take(line)
            except Leave:
                break
            except FlatlmError as error:
                self.notice(str(error))
                status = 0 if self._terminal else 2
            except KeyboardInterrupt:  # between two answers
                if not self._terminal:
                    raise
        return status

    def notice(self, text: str) -> None:
        """A dim line beside the conversation; into pipes by stderr."""
        if self._terminal:
            print(_dim(_harmless(text)))
        else:
            print(f"flatlm chat: {text}", file=sys.stderr)

    def _say(self, text: str) -> None:
        """What a command tells."""
        if not self._quiet:
            print(_harmless(text) if self._terminal else text, flush=True)

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if line.startswith("/") and not line.startswith("//"):
            asked = self._chat.run(line.strip())
        else:
            asked = self._conversation.ask(line.removeprefix("/") if line.startswith("//") else line)
        if asked is not None:
            self._answer(asked)

    def _answer(self, asked: Asked) -> None:
        talk = self._conversation
        if asked.forgotten > talk.forgotten:
            self.notice(f"the context is full: the model no longer sees the oldest {asked.forgotten} turns")
        reason = None
        with _stoppable() if self._terminal else nullcontext(threading.Event()) as stopped:
            pieces = talk.answer(asked)
            for piece in pieces:
                if not self._quiet and piece.text:
                    print(_harmless(piece.text) if self._terminal else piece.text, end="", flush=True)
                reason = piece.finish_reason
                if stopped.is_set():
                    pieces.close()
        if not self._quiet:
            print(flush=True)
        if stopped.is_set() and reason is None:
            self.notice("stopped")
        if reason == "context":
            self.notice(f"the context of {talk.context_length:,} tokens is full: the answer ends here")
        if self._terminal and (stats := talk.session.last) is not None:
            self.notice(f"{described(stats)} · context {talk.context_used:,} of {talk.context_length:,}")


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Ctrl-C sets the event meanwhile, and does nothing else: an exception in the middle of a step would leave half of it."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _dim(text: str) -> str:
    return text if "NO_COLOR" in os.environ else f"\x1b[2m{text}\x1b[0m"


def _harmless(text: str) -> str:
    """Without what a terminal would obey: a model may write any character."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def _record(name: str, conversation: Conversation) -> dict[str, Any]:
    return {
        "model": name,
        "system": conversation.system,
        "params": {**params_of(conversation.config), "when_full": conversation.when_full},
        "turns": [dataclasses.asdict(turn) for turn in conversation.turns],
        "context_used": conversation.context_used,
        "context_length": conversation.context_length,
        "turns_forgotten": conversation.forgotten,
        **recorded_counts(conversation.session.runner),
    }
