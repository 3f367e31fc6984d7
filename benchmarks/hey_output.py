"""What `hey -o csv` prints, a line for each answer. Its own summary leaves out parts of few requests, and ranks others of them too high."""

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass

HEADERS = ("requests/s", "tokens/s", "p50, ms", "p95, ms", "answers, status")
OK = "200"


@dataclass(frozen=True)
class Load:
    """Requests that were sent as fast as answers came."""

    asked: int
    seconds: float
    """From the first request to the last answer."""
    times_ms: tuple[float, ...]
    """Of the answers with status 200, the fastest first."""
    statuses: Counter[str]

    @classmethod
    def read(cls, text: str, *, asked: int) -> "Load":
        """`asked`: how many requests there were; hey does not list those that had no answer."""
        lines = list(csv.DictReader(io.StringIO(text)))
        return cls(
            asked,
            max((float(line["offset"]) + float(line["response-time"]) for line in lines), default=0.0),
            tuple(sorted(float(line["response-time"]) * 1e3 for line in lines if line["status-code"] == OK)),
            Counter(line["status-code"] for line in lines),
        )

    def part_ms(self, percent: int) -> float | None:
        """The time within which so many of a hundred were answered (the nearest rank); None: none was."""
        return self.times_ms[math.ceil(len(self.times_ms) * percent / 100) - 1] if self.times_ms else None

    def row(self, *, tokens: int) -> list[str]:
        """Cells under HEADERS, of answers of so many tokens each. What was refused counts in the last alone."""
        rate = len(self.times_ms) / self.seconds if self.seconds else 0.0
        parts = ["-" if (found := self.part_ms(percent)) is None else f"{found:,.1f}" for percent in (50, 95)]
        told = [f"{count} of {status}" for status, count in sorted(self.statuses.items())]
        lost = self.asked - self.statuses.total()
        return [f"{rate:.1f}", f"{rate * tokens:,.0f}", *parts, ", ".join(told + [f"{lost} without an answer"] * bool(lost))]
