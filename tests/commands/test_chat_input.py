"""Messages of several lines."""

import pytest

from flatlm.commands.chat_input import is_open, message_of, messages


@pytest.mark.parametrize(
    ("text", "more", "meant"),
    [
        ("one", False, "one"),
        ("", False, ""),
        ("one\\", True, "one"),
        ("one\\\ntwo", False, "one\ntwo"),
        ("one\\\ntwo\\\n", False, "one\ntwo\n"),
        ('"""', True, ""),
        ('"""one\ntwo\\\n', True, "one\ntwo\\"),
        ('"""\none\n  two\n"""', False, "one\n  two"),
        ('  """one""" two', False, "one two"),
        ('say """', False, 'say """'),
        ("C:\\dir\\file", False, "C:\\dir\\file"),
    ],
)
def test_what_is_open_and_what_is_meant(text: str, more: bool, meant: str) -> None:
    assert is_open(text) == more
    assert message_of(text) == meant


def test_messages_from_a_pipe() -> None:
    lines = ["one\n", "two\\\n", "three\r\n", "\n", '"""\n', "four\n", "\n", '"""\n', "five\\"]
    assert list(messages(lines)) == ["one", "two\nthree", "", "four\n", "five"]
    assert list(messages(['"""\n', "six\n"])) == ["six"]
    assert list(messages([])) == []
