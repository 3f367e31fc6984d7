"""What is asked of a benchmark, and what it found: the same record from every target. Data only, and small: it travels to devices."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Self


@dataclass(frozen=True)
class Measure:
    """Median and spread over the runs."""

    median: float
    minimum: float
    maximum: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(float(median(values)), float(min(values)), float(max(values)), len(values))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any] | None) -> Self | None:
        return None if value is None else cls(**value)


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure. None: a default that fits the file."""

    file: Path
    prefill: int | None = None
    """Tokens of the prompt."""
    decode: int | None = None
    """Tokens decoded after it."""
    depths: tuple[int, ...] = (0,)
    """Tokens that are in the context already when the prompt is read."""
    runs: int = 5
    """Counted runs at each depth, after `warmup` that are not: at least so many; more where they are short."""
    warmup: int = 1
    threads: int | None = None
    weight_cache: bool = True
    """XNNPACK's weight cache: one packed copy of the weights for all signatures."""
    runner: Path | None = None
    """A device's own program to measure with (LiteRT's or LiteRT-LM's), for targets without Python."""


@dataclass(frozen=True)
class DepthSpeeds:
    """Speeds with `depth` tokens in the context before the prompt; None where the target's program does not tell."""

    depth: int
    prefill_tokens_per_second: Measure | None
    decode_tokens_per_second: Measure | None


@dataclass(frozen=True)
class Machine:
    """Where it ran. An empty string or 0: not known."""

    cpu: str
    architecture: str
    cores: int
    memory_bytes: int
    system: str
    """Its operating system, such as `Linux 6.1`."""
    runtime: str
    """What ran the file, such as `ai-edge-litert 2.3.0`."""


@dataclass(frozen=True)
class BenchmarkRecord:
    """One file on one machine."""

    file: str
    """Its name, without its folder."""
    file_bytes: int
    target: str
    """As the user named it: `local`, `ssh://user@host`, `adb:SERIAL`."""
    machine: Machine
    threads: int
    weight_cache: bool
    prefill_tokens: int
    decode_tokens: int
    depths: tuple[DepthSpeeds, ...]
    time_to_first_token_s: Measure | None
    """From an empty cache: the prefill, and the step whose logits give the answer's first token."""
    load_s: Measure | None
    """Opening the file, its weights packed anew, the runtime imported."""
    peak_rss_bytes: int | None
    """Of the process, mapped files included."""
    energy_j_per_token: Measure | None = None
    """Joules a decoded token, of the whole processor package or battery, idle draw included; None where the machine does not tell."""
    noise: tuple[str, ...] = ()
    """Reasons to doubt the figures: what else ran on the machine, runs that differ. Empty where it was quiet."""

    @property
    def prefill_tokens_per_second(self) -> Measure | None:
        """At the smallest depth."""
        return self._shallowest.prefill_tokens_per_second

    @property
    def decode_tokens_per_second(self) -> Measure | None:
        """At the smallest depth."""
        return self._shallowest.decode_tokens_per_second

    @property
    def smallest_depth(self) -> int:
        return self._shallowest.depth

    @property
    def threads_and_cache(self) -> str:
        """What tells it from others of the same file and target, as a table says it."""
        return f"{self.threads}{'' if self.weight_cache else ', no weight cache'}"

    @property
    def _shallowest(self) -> DepthSpeeds:
        return min(self.depths, key=lambda speeds: speeds.depth)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `from_dict` reads it. Medians stand under the measures' names at the top, their spread under `spread`."""
        measures = {name: getattr(self, name) for name in _MEASURES}
        return (
            asdict(self)
            | {name: None if measure is None else measure.median for name, measure in measures.items()}
            | {"spread": {name: asdict(measure) for name, measure in measures.items() if measure is not None}}
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Of what `to_dict` gave, from JSON; unknown keys are passed over.

        Raises ValueError, TypeError, KeyError or AttributeError for anything else.
        """
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        spread = value.get("spread", {})
        known |= {name: Measure.from_dict(spread.get(name)) for name in _MEASURES if name in known}
        known["machine"] = Machine(**known["machine"])
        known["noise"] = tuple(known.get("noise", ()))
        known["depths"] = tuple(
            DepthSpeeds(
                item["depth"],
                Measure.from_dict(item["prefill_tokens_per_second"]),
                Measure.from_dict(item["decode_tokens_per_second"]),
            )
            for item in known["depths"]
        )
        depths = [speeds.depth for speeds in known["depths"]]
        if not depths or not all(isinstance(depth, int) and not isinstance(depth, bool) for depth in depths):
            raise ValueError(f"depths has to be one whole number or more, not {depths}")
        machine = known["machine"]
        for name, text in {"target": known["target"], "cpu": machine.cpu, "architecture": machine.architecture}.items():
            if not isinstance(text, str):
                raise ValueError(f"{name} has to be text, not {text!r}")
        return cls(**known)


_MEASURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "load_s", "energy_j_per_token")
