"""Messages of several lines, as somebody types them: an open line goes on in the next one."""

from collections.abc import Iterable, Iterator

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether more is to come: its last line ends in a backslash, or it begins with QUOTES that are not closed."""
    begun = text.lstrip()
    if begun.startswith(QUOTES):
        return QUOTES not in begun[len(QUOTES) :]
    return text.endswith("\\")


def message_of(text: str) -> str:
    """What is meant: without the quotes around it, or the backslashes at the ends of lines."""
    begun = text.strip()
    if begun.startswith(QUOTES):
        inner, _, rest = begun[len(QUOTES) :].partition(QUOTES)
        return inner.removeprefix("\n").removesuffix("\n") + rest
    return text.removesuffix("\\").replace("\\\n", "\n")


def messages(lines: Iterable[str]) -> Iterator[str]:
    """The messages in lines that come from a file or a pipe. What is open at the end is a message too."""
    text = ""
    for line in lines:
        text += line.removesuffix("\n").removesuffix("\r")
        if is_open(text):
            text += "\n"
            continue
        yield message_of(text)
        text = ""
    if text:
        yield message_of(text.removesuffix("\n"))
