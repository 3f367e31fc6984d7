"""Where messages are typed: a line editor with history, several lines, and /commands that complete themselves."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from flatlm.commands.chat_commands import COMMANDS
from flatlm.commands.chat_input import is_open, message_of
from flatlm.generative.chatting.params import PARAMS
from flatlm.generative.memory import cache_directory

PROMPT = "> "
MORE = ". "
_HISTORY = "chat_history"


def typed(notice: Callable[[str], None]) -> Iterator[str]:
    """The user's messages, until Ctrl-D; Ctrl-C empties the line."""
    session: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=MORE,
        key_bindings=_keys(),
        completer=_Commands(),
        complete_while_typing=False,
        history=_history(cache_directory()),
    )
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                notice("/exit or Ctrl-D leaves")
            continue
        except EOFError:
            return
        yield message_of(text)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Commands(Completer):
    """What a line may be that begins with /."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            yield from (Completion(each, -len(name), display_meta=what) for each, what in COMMANDS.items() if each.startswith(name))
        elif name == "/params":
            yield from (Completion(each, -len(rest)) for each in (*PARAMS, "when_full") if each.startswith(rest))


def _history(folder: Path) -> History:
    """What was typed before, kept where FlatLM keeps things; only for this time where that cannot be written."""
    file = folder / _HISTORY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
        file.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _History(file)


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        with suppress(OSError, ValueError):  # a full disk, or what is no Unicode: the conversation goes on
            super().store_string(string)
