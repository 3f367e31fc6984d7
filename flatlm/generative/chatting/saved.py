"""A conversation as a JSON file: its messages, and how answers are written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm import __version__
from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import TextError
from flatlm.generative.chatting.conversation import WHEN_FULL, Conversation, Message, Turn
from flatlm.generative.chatting.params import params_of, with_params
from flatlm.generative.generation_config import GenerationConfig

MOST_BYTES = 64 << 20
"""Of a file that is read."""


@dataclass(frozen=True)
class SavedConversation:
    """What a file says, each as `Conversation` has it."""

    system: str | None
    turns: tuple[Turn, ...]
    config: GenerationConfig
    when_full: Any

    def put_into(self, conversation: Conversation) -> None:
        """In the place of what is there."""
        conversation.system, conversation.config, conversation.when_full = self.system, self.config, self.when_full
        conversation.reset(self.turns)


def save_conversation(path: Path, conversation: Conversation) -> None:
    """Whole or not at all, over a file that is there. Raises OutputError, and TextError for what is no Unicode."""
    params = {**params_of(conversation.config), "when_full": conversation.when_full}
    value = {
        "flatlm": __version__,
        "model": conversation.session.runner.file.path.name,
        "params": params,
        "messages": conversation.messages,
    }
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    require_unicode(text, f"the conversation for {path}")
    with atomic_output(path) as temporary:
        temporary.write_text(text, "utf-8")


def load_conversation(path: Path, config: GenerationConfig) -> SavedConversation:
    """What `save_conversation` wrote, or another program: only "messages" has to be there. `config`: where the file does not say.

    Raises TextError, which names the file and what is wrong in it, and RuntimeFileError for an impossible parameter.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise TextError(f"{path} is larger than {MOST_BYTES:,} bytes: no conversation of ours")
        value = json.loads(data)
        require_unicode(json.dumps(value, ensure_ascii=False), str(path))
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TextError(f"{path} is no conversation: {error}") from error
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list):
        raise TextError(f'{path} is no conversation: it has no list "messages"')
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise TextError(f'{path}: "params" is not an object, such as {{"temperature": 0}}')
    when_full = params.pop("when_full", WHEN_FULL[0])
    if when_full not in WHEN_FULL:
        raise TextError(f'{path}: "when_full" is {when_full!r}, and not {" or ".join(WHEN_FULL)}')
    system = messages.pop(0).get("content") if messages and _role(messages[0]) == "system" else None
    if system is not None and not isinstance(system, str):
        raise TextError(f"{path}: the system message has no text")
    return SavedConversation(system, tuple(_turns(path, messages)), with_params(config, params), when_full)


def require_unicode(text: str, what: str) -> None:
    """Raises TextError, which names `what`, for half a surrogate pair: a byte of another encoding in a pipe, or an escape in JSON."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(f"{what} is not valid Unicode: {error.reason} at character {error.start}; give UTF-8") from error


def _turns(path: Path, messages: list[Message]) -> list[Turn]:
    for number, message in enumerate(messages):
        wanted = ("user", "assistant")[number % 2]
        if _role(message) != wanted or not isinstance(message.get("content"), str):
            raise TextError(f"{path}: message {number + 1} after the system's is not one of {wanted!r} with a text as its content")
    if len(messages) % 2:
        raise TextError(f"{path}: the last question has no answer")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return [Turn(question["content"], answer["content"]) for question, answer in pairs]


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None
