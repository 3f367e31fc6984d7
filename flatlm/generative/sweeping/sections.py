"""Reading a YAML file strictly: every key and value is asked for by name and kind, and all mistakes come in one error."""

import difflib
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatlm.errors import SweepError

MOST_BYTES = 1 << 20
MOST_SHOWN = 12
"""Mistakes that one error lists."""
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 60


def load_yaml(path: Path) -> Any:
    """The one document of a YAML file, of plain values. Raises SweepError, with the line, where it cannot be read."""
    try:
        import yaml
    except ImportError:
        raise SweepError("a sweep needs PyYAML: pip install 'flatlm[sweep]'") from None
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise SweepError(f"{path} is larger than {MOST_BYTES} bytes, too large for a sweep: split it")

    class Strict(yaml.SafeLoader):  # YAML's own takes the last of two equal keys
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.value[index][0].start_mark)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(content, Strict)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark
        line = "" if at is None else f", line {at.line + 1}"
        raise SweepError(
            f"{path}{line}: {error.problem or error.context}; is it YAML? A value with `: ` or `#` in it needs quotes"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SweepError(f"{path} is not YAML that can be read ({' '.join(str(error).split())[:200]})") from error


class Mistakes:
    """What is wrong with one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[str] = []

    def add(self, where: str, what: str) -> None:
        self._found.append(f"{where}: {what}" if where else what)

    def __bool__(self) -> bool:
        return bool(self._found)

    def require_none(self) -> None:
        """SweepError that names the file and lists them all."""
        if len(self._found) == 1:
            raise SweepError(f"{self.path}: {self._found[0]}")
        if self._found:
            listed = "".join(f"\n  {mistake}" for mistake in self._found[:MOST_SHOWN])
            more = len(self._found) - MOST_SHOWN
            raise SweepError(f"{self.path}: {len(self._found)} mistakes:{listed}" + (f"\n  and {more} more" if more > 0 else ""))


class Section:
    """A mapping of the file. What is not as asked for is a mistake, and the default stands in for it.

    `close` after the last question: a key that nobody asked for is a mistake.
    """

    def __init__(self, value: Any, where: str, mistakes: Mistakes) -> None:
        self.where, self.mistakes = where, mistakes
        self._asked: dict[str, None] = {}
        self._is_mapping = isinstance(value, Mapping)
        if not self._is_mapping:
            self.mistakes.add(where, f"must be a mapping of keys to values, not {shown(value)}")
        self._values: Mapping[Any, Any] = value if self._is_mapping else {}

    def path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, what: str) -> None:
        self.mistakes.add(self.path(key), what)

    def get(self, key: str) -> Any:
        """None where it is absent, or null."""
        self._asked[key] = None
        return self._values.get(key)

    def require(self, key: str, what: str) -> None:
        """A mistake where it is absent; `what` says what it should be."""
        if self.get(key) is None and self._is_mapping:
            self.mistakes.add(self.where, f"has no {key!r}: {what}")

    def require_none(self, keys: Sequence[str], why: str) -> None:
        """Each that is there is a mistake."""
        for key in keys:
            if self.get(key) is not None:
                self.wrong(key, why)

    def text(self, key: str) -> str | None:
        value: str | None = self._of_kind(key, lambda value: isinstance(value, str) and value.strip() != "", "text")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._of_kind(key, lambda value: isinstance(value, bool), "true or false")
        return default if value is None else value

    def whole(self, key: str, *, least: int = 1) -> int | None:
        value: int | None = self._of_kind(key, lambda value: is_whole(value, least), f"a whole number of at least {least}")
        return value

    def choice(self, key: str, allowed: list[str], default: str) -> str:
        value = self.get(key)
        if value is None:
            return default
        if value not in allowed:
            self.wrong(key, f"is {shown(value)}; {suggestion(value, allowed)}")
            return default
        return str(value)

    def items(self, key: str) -> list[tuple[str, Any]]:
        """Each item with its place, such as `recipes[0]`, counted from 0; none where the key is absent."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not value:
            self.wrong(key, f"must be a list of at least one, such as [a, b], not {shown(value)}")
            return []
        return [(f"{self.path(key)}[{index}]", item) for index, item in enumerate(value)]

    def wholes(self, key: str, *, least: int) -> tuple[int, ...] | None:
        items = self.items(key)
        for where, item in items:
            if not is_whole(item, least):
                self.mistakes.add(where, f"must be a whole number of at least {least}, not {shown(item)}")
        return tuple(item for _, item in items if is_whole(item, least)) or None

    def texts(self, key: str) -> tuple[str, ...]:
        items = self.items(key)
        for where, item in items:
            if not isinstance(item, str):
                self.mistakes.add(where, f"must be text, not {shown(item)}")
        return tuple(item for _, item in items if isinstance(item, str))

    def section(self, key: str) -> "Section | None":
        value = self.get(key)
        return None if value is None else Section(value, self.path(key), self.mistakes)

    def close(self) -> None:
        for key in self._values:
            if key not in self._asked:
                self.mistakes.add(self.path(str(key))[:200], f"unknown key; {suggestion(key, list(self._asked))}")

    def _of_kind(self, key: str, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.get(key)
        if value is None or fits(value):
            return value
        self.wrong(key, f"must be {what}, not {shown(value)}")
        return None


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def suggestion(value: object, allowed: list[str]) -> str:
    """Did you mean, or what there is."""
    near = difflib.get_close_matches(str(value), allowed, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(allowed)}"


def shown(value: object) -> str:
    """Short, however large or deep the value."""
    return _SHORT.repr(value)
