"""What a line that begins with / asks for in `flatlm chat`."""

import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flatlm.errors import RuntimeFileError, TextError
from flatlm.generative.chatting.conversation import WHEN_FULL, Asked, Conversation
from flatlm.generative.chatting.params import PARAMS, params_of, read_param, with_params
from flatlm.generative.chatting.saved import load_conversation, require_unicode, save_conversation
from flatlm.generative.session import TurnStats
from flatlm.generative.speculation import counts_of, describe_counts

COMMANDS = {
    "/help": "what can be typed here",
    "/reset": "begin anew; the system prompt stays",
    "/undo": "take back the last question and its answer",
    "/retry": "another answer to the last question",
    "/system": "[TEXT]  what the model is told before all; without TEXT: tell it nothing",
    "/params": "[NAME VALUE]  how answers are written; VALUE may be none",
    "/stats": "what the last turn took, and how full the context is",
    "/save": "FILE  write the conversation down; /save! FILE writes over a file that is there",
    "/load": "FILE  go on with the conversation of a file",
    "/exit": "leave, as Ctrl-D does",
}
KEYS = """Alt-Enter begins another line; so does Enter behind a \\ at a line's end, and between \"\"\" and \"\"\".
Ctrl-C stops an answer, and what was written stays. // begins a message that begins with /."""


class Leave(Exception):  # noqa: N818 - no error
    """The user has had enough."""


@dataclass(frozen=True)
class Chat:
    """A conversation, and `say`, which prints a notice of a line or more."""

    conversation: Conversation
    say: Callable[[str], None]

    def run(self, line: str) -> Asked | None:
        """Do what the line asks for; what is to be answered now, if anything is. Raises Leave, and FlatlmError for what cannot be done."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/undo": self._undo,
            "/system": self._system,
            "/params": self._params,
            "/stats": self._stats,
            "/save": lambda text: self._save(text, over=False),
            "/save!": lambda text: self._save(text, over=True),
            "/load": self._load,
        }
        if name in ("/exit", "/quit"):
            raise Leave
        if name == "/retry":
            return self._retry()
        if name not in actions:
            raise RuntimeFileError(f"there is no {name}: /help lists what there is; a message that begins with / begins with //")
        actions[name](rest)
        return None

    def _help(self, _: str) -> None:
        width = max(map(len, COMMANDS))
        self.say("\n".join([*(f"{name:<{width}}  {what}" for name, what in COMMANDS.items()), KEYS]))

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self.say("a new conversation")

    def _undo(self, _: str) -> None:
        turn = self.conversation.undo()
        self.say(f"taken back: {_short(turn.question)}")

    def _retry(self) -> Asked:
        asked = self.conversation.ask_again()
        if self.conversation.config.temperature == 0 or self.conversation.config.seed is not None:
            self.say("this will be the same answer: try /params temperature 0.8, or /params seed none")
        return asked

    def _system(self, text: str) -> None:
        require_unicode(text, "/system TEXT")
        self.conversation.system = text or None
        self.say("the model is told this from the next question on" if text else "the model is told nothing before the conversation")

    def _params(self, text: str) -> None:
        name, _, value = text.partition(" ")
        now = {**params_of(self.conversation.config), "when_full": self.conversation.when_full}
        if not name:
            width = max(map(len, now))
            self.say("\n".join(f"{key:<{width}}  {_told(value)}" for key, value in now.items()))
            return
        if name not in now:
            raise RuntimeFileError(f"there is no parameter {name!r}; there are {', '.join(PARAMS)}, when_full")
        if not value:
            self.say(f"{name}  {_told(now[name])}")
        elif name != "when_full":
            self.conversation.config = with_params(self.conversation.config, {name: read_param(name, value.strip())})
        elif (found := next((each for each in WHEN_FULL if each == value.strip()), None)) is None:
            raise RuntimeFileError(f"when_full {value.strip()!r} is not possible: it is {' or '.join(WHEN_FULL)}")
        else:
            self.conversation.when_full = found

    def _stats(self, _: str) -> None:
        talk = self.conversation
        stats = talk.turns[-1].stats if talk.turns else None
        lines = [described(stats)] if stats is not None else ["nothing was answered here yet"]
        context = f"context {talk.context_used:,} of {talk.context_length:,} tokens; {len(talk.turns)} turns"
        lines.append(f"{context}, of which the model no longer sees {talk.forgotten}" if talk.forgotten else context)
        if (counts := counts_of(talk.session.runner)) is not None:
            lines.append(describe_counts(counts))
        self.say("\n".join(lines))

    def _save(self, text: str, *, over: bool) -> None:
        path = _path(text, "/save FILE")
        there = os.path.lexists(path)
        if there and not over:
            raise TextError(f"{path} is there already: /save! {path} writes over it")
        save_conversation(path, self.conversation)
        self.say(f"{'wrote over' if there else 'wrote'} {path}: {len(self.conversation.turns)} turns")

    def _load(self, text: str) -> None:
        found = load_conversation(_path(text, "/load FILE"), self.conversation.config)
        found.put_into(self.conversation)
        self.say(f"{len(found.turns)} turns" + (f"; the last question was: {_short(found.turns[-1].question)}" if found.turns else ""))


def described(stats: TurnStats) -> str:
    """A turn in a line: speed, the time to its first token, and what of its prompt was in the cache already."""
    first = stats.time_to_first_token_s
    parts = [] if stats.new_tokens < 2 or not stats.decode_s else [f"{(stats.new_tokens - 1) / stats.decode_s:,.1f} tokens/s"]
    parts += [] if first is None else [f"first token after {first:.3f} s"]
    read = stats.prompt_tokens - stats.shared_tokens
    return " · ".join([*parts, f"prompt of {stats.prompt_tokens:,} tokens: {stats.shared_tokens:,} kept, {read:,} read"])


def _path(text: str, usage: str) -> Path:
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise TextError(f"{text}: {error}; {usage}") from error
    if len(parts) != 1:
        raise TextError(f"a file's name is needed, in quotes where it has spaces: {usage}")
    try:
        path = Path(parts[0]).expanduser()
        os.lstat(path)
    except FileNotFoundError:
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, not to be reached, with a null character, or of nobody's home
        raise TextError(f"{parts[0]!r} can be no file's name: {getattr(error, 'strerror', None) or error}; {usage}") from error
    return path


def _told(value: object) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(repr, value)) or "none"
    return "none" if value is None else str(value)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
