"""What a comparison found. Data only."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flatlm.generative.benchmarking.record import Machine, Measure
from flatlm.generative.comparison.ratios import Ratio

MEASURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s")


@dataclass(frozen=True)
class Speeds:
    """One subject's, with `depth` tokens in the context before the prompt."""

    depth: int
    prefill_tokens_per_second: Measure
    decode_tokens_per_second: Measure
    time_to_first_token_s: Measure
    """The prefill, and the step whose logits give the answer's first token."""


@dataclass(frozen=True)
class SubjectFigures:
    """One subject's."""

    name: str
    file: str
    """Its name, without its folder."""
    file_bytes: int
    runtime: str
    """What ran it, such as `ai-edge-litert 2.3.0`."""
    depths: tuple[Speeds, ...]
    load_s: Measure
    """Opening the file, its weights packed anew, the runtime imported; of each of its processes."""
    peak_rss_bytes: int
    """Of its process, mapped files included; the largest of several."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: medians at the smallest depth stand under the measures' names at the top; loading's spread under `spread`."""
        medians = {name: getattr(self.depths[0], name).median for name in MEASURES} | {"load_s": self.load_s.median}
        return asdict(self) | medians | {"spread": {"load_s": asdict(self.load_s)}}


@dataclass(frozen=True)
class SubjectRatio:
    """A figure of one subject over the same of the first, at one depth. Of speeds, above 1 is faster; of times, below 1 is sooner."""

    subject: str
    to: str
    measure: str
    """One of MEASURES."""
    depth: int
    ratio: Ratio

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ratio = self.ratio
        return {
            "subject": self.subject,
            "to": self.to,
            "measure": self.measure,
            "depth": self.depth,
            "ratio": ratio.median,
            "low": ratio.low,
            "high": ratio.high,
            "rounds": ratio.rounds,
            "distinguishable": ratio.distinguishable,
        }


@dataclass(frozen=True)
class Comparison:
    """Several subjects that took turns on one machine."""

    subjects: tuple[SubjectFigures, ...]
    ratios: tuple[SubjectRatio, ...]
    prefill_tokens: int
    decode_tokens: int
    threads: int
    machine: Machine
    notes: tuple[str, ...]
    """What is not equal between the subjects, or not in the intervals."""
    noise: tuple[str, ...]
    """Reasons to doubt the figures: what else ran on the machine, rounds that differ. Empty where it was quiet."""

    def ratio(self, subject: str, measure: str, depth: int) -> Ratio | None:
        """None for the first subject."""
        found: Sequence[Ratio] = [
            item.ratio for item in self.ratios if (item.subject, item.measure, item.depth) == (subject, measure, depth)
        ]
        return found[0] if found else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "subjects": [subject.to_dict() for subject in self.subjects],
            "ratios": [ratio.to_dict() for ratio in self.ratios],
            "prefill_tokens": self.prefill_tokens,
            "decode_tokens": self.decode_tokens,
            "threads": self.threads,
            "machine": asdict(self.machine),
            "notes": list(self.notes),
            "noise": list(self.noise),
        }
