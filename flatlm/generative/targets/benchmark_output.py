"""What the programs that measure on devices write, read back into numbers.

`benchmark_model` is LiteRT's, in two makes: TFLite's own (`tflite/tools/benchmark`, since TensorFlow 2) and the one around
CompiledModel (`litert/tools`, LiteRT 2). Both write one line of statistics, in microseconds, for the warm-up and then for the runs:

    INFO: count=5 first=5012 curr=5001 min=4980 max=5100 avg=5020.4 std=40 p5=4980 median=5012 p95=5100

(without percentiles in older versions; `count=1 curr=5012`, `count=3 curr=5012(all same)` where there is nothing to tell apart), and
a summary: `Inference timings in us: Init: 3337, ...` and `Overall peak memory footprint (MB) via periodic monitoring: 93.2` in the
former, `Model initialization: 3.34 ms` and `Peak memory: 93.20 MB` in the latter. MB are 2^20 bytes in both.

`litert_lm_advanced_main` is LiteRT-LM's (0.11 to 0.18 write the same). For each iteration it logs:

    BenchmarkInfo:
      Init Phases (2):
        - Init Total: 512.05 ms
      Prefill Turns (Total 1 turns):
        Prefill Turn 1: Processed 128 tokens in 372.565677ms duration.
      Decode Turns (Total 1 turns):
        Decode Turn 1: Processed 64 tokens in 1.2s duration.
    Peak system ram usage: 812.5MB.

and, after several, the medians under `Aggregated BenchmarkInfo`, which are not read. Lines may begin with a logger's marks.
"""

import re
from dataclasses import dataclass

from flatlm.errors import TargetError

_MEGABYTE = 1 << 20
_COUNT = re.compile(r"\bcount=\d.*")
_PAIR = re.compile(r"(\w+)=(\S+)")
_INIT = re.compile(r"(?:Inference timings in us: Init: ([\d.e+]+))|(?:Model initialization: +([\d.]+) ms)")
_PEAK = re.compile(r"(?:Overall peak memory footprint \(MB\) via periodic monitoring|Peak memory): +([\d.]+)")
_IGNORED = re.compile(r"Unconsumed cmdline flags: *(.+)")

_BLOCK = re.compile(r"\bBenchmarkInfo:")  # not `Aggregated BenchmarkInfo (median of ...):`
_TURN = re.compile(r"(Prefill|Decode) Turn \d+: Processed (\d+) tokens in (\S+) duration")
_INIT_TOTAL = re.compile(r"Init Total: ([\d.]+) ms")
_RAM = re.compile(r"Peak system ram usage: ([\d.]+) ?MB")
_PART = re.compile(r"([\d.]+)(ns|us|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class ModelTimings:
    """Of one run of `benchmark_model`: seconds that calls of one signature took."""

    load_s: float
    calls: int
    mean_s: float
    median_s: float
    """The mean, where the program's version tells no median."""
    minimum_s: float
    maximum_s: float
    peak_rss_bytes: int | None
    ignored: str
    """Flags that the program did not know, as it lists them."""

    @property
    def spread_s(self) -> tuple[float, float, float]:
        """Of a call: median, fastest, slowest."""
        return self.median_s, self.minimum_s, self.maximum_s


@dataclass(frozen=True)
class Iteration:
    """Of LiteRT-LM: one prompt and its answer."""

    load_s: float | None
    prefill_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float

    @property
    def time_to_first_token_s(self) -> float:
        """As LiteRT-LM reckons it: the prompt, and one step of the answer's mean length."""
        return self.prefill_s + self.decode_s / self.decode_tokens


@dataclass(frozen=True)
class Iterations:
    """Of one run of LiteRT-LM's program."""

    iterations: tuple[Iteration, ...]
    peak_rss_bytes: int | None


def parse_benchmark_model(text: str) -> ModelTimings:
    """What `benchmark_model` wrote, stdout and stderr. Raises TargetError that quotes the line at fault."""
    counts = _COUNT.findall(text)
    init = list(_INIT.finditer(text))
    if not counts or not init:
        raise TargetError(f"benchmark_model's output tells no timings; it ends with: {last_line(text)}")
    line = counts[-1]  # the runs; the warm-up's line is before it
    values = {key: _number(value, line) for key, value in _PAIR.findall(line.replace("(all same)", ""))}
    mean = values.get("avg", values.get("curr"))
    if not values["count"] or not mean:
        raise TargetError(f"benchmark_model counted no run: {line.strip()}")
    micros, millis = init[-1].groups()
    peak = [_number(value, value) for value in _PEAK.findall(text)]
    ignored = _IGNORED.search(text)
    return ModelTimings(
        load_s=_number(micros, line) * 1e-6 if micros else _number(millis, line) * 1e-3,
        calls=int(values["count"]),
        mean_s=mean * 1e-6,
        median_s=values.get("median", mean) * 1e-6,
        minimum_s=values.get("min", mean) * 1e-6,
        maximum_s=values.get("max", mean) * 1e-6,
        peak_rss_bytes=round(max(peak) * _MEGABYTE) if peak else None,
        ignored=ignored[1].strip() if ignored else "",
    )


def parse_litert_lm(text: str) -> Iterations:
    """What LiteRT-LM's program wrote, stdout and stderr. Raises TargetError that quotes the line at fault."""
    starts = [match.end() for match in _BLOCK.finditer(text)]
    if not starts:
        raise TargetError(f"LiteRT-LM's output has no BenchmarkInfo; it ends with: {last_line(text)}")
    blocks = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    ram = [_number(value, value) for value in _RAM.findall(text)]
    return Iterations(tuple(map(_iteration, blocks)), round(max(ram) * _MEGABYTE) if ram and max(ram) > 0 else None)


def _iteration(block: str) -> Iteration:
    turns: dict[str, tuple[int, float]] = {}
    for match in _TURN.finditer(block):
        turns.setdefault(match[1], (int(match[2]), _duration(match[3], match[0])))
    for kind in ("Prefill", "Decode"):
        tokens, seconds = turns.get(kind, (0, 0.0))
        if tokens < 1 or seconds <= 0:
            lines = [line.strip() for line in block.splitlines() if line.strip().startswith(f"{kind} Turn")]
            raise TargetError(f"LiteRT-LM's BenchmarkInfo tells no {kind.lower()}: {lines[-1] if lines else last_line(block)}")
    init = _INIT_TOTAL.search(block)
    load = _number(init[1], init[0]) * 1e-3 if init else None
    return Iteration(load, *turns["Prefill"], *turns["Decode"])


def last_line(text: str) -> str:
    """The last line that says something, shortened; `nothing` for none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "nothing"


def _duration(text: str, line: str) -> float:
    """Seconds of a duration such as `1m2.5s` or `372.56ms`."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise TargetError(f"the duration {text!r} is not understood: {line}")
    return sum(_number(number, line) * _UNITS[unit] for number, unit in parts)


def _number(text: str, line: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TargetError(f"{text!r} is not a number: {line.strip()}") from None
