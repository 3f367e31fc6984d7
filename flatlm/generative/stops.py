"""Stop strings: a text's pieces on their way out, held back exactly while they may still become one."""

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the stop that is complete first; of several that end at one character, up to the longest.

    How the text is cut into pieces makes no difference. Each stop is followed character by character as Knuth, Morris and Pratt do (1977),
    so the cost does not grow with the stops' lengths.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: none of them empty."""
        self._stops = [(stop, _borders(stop)) for stop in dict.fromkeys(stops)]
        self._matched = [0] * len(self._stops)  # of each stop, how much of its beginning the text ends with
        self._held = ""
        self.found: str | None = None
        """The stop that ended the text."""

    def push(self, text: str) -> str:
        """What is certain now not to belong to a stop. Nothing comes after one."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        for place, character in enumerate(text, start=1):
            for i, (stop, borders) in enumerate(self._stops):
                matched = self._matched[i]
                while matched and stop[matched] != character:
                    matched = borders[matched - 1]
                self._matched[i] = matched + (stop[matched] == character)
            complete = [stop for (stop, _), matched in zip(self._stops, self._matched, strict=True) if matched == len(stop)]
            if complete:
                self.found = max(complete, key=len)
                whole, self._held = self._held + text[:place], ""
                return whole[: len(whole) - len(self.found)]
        whole = self._held + text
        certain = len(whole) - max(self._matched)
        self._held = whole[certain:]
        return whole[:certain]

    def finish(self) -> str:
        """What was held back, at the end of a text that ended otherwise."""
        rest, self._held = self._held, ""
        return rest


def _borders(stop: str) -> list[int]:
    """Of each beginning of a stop, by its length less one: the longest shorter beginning that it ends with."""
    borders = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[i] != stop[matched]:
            matched = borders[matched - 1]
        matched += stop[i] == stop[matched]
        borders[i] = matched
    return borders
