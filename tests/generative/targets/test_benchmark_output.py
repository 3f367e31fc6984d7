"""The parsers, on samples written in the programs' formats."""

import pytest

from flatlm.errors import TargetError
from flatlm.generative.targets.benchmark_output import Iteration, last_line, parse_benchmark_model, parse_litert_lm

SUMMARY = "INFO: Inference timings in us: Init: 3337, First inference: 9, Warmup (avg): 9, Inference (avg): 1.24027e+06\n"


def timings(line, *, summary=SUMMARY):
    return parse_benchmark_model(f"INFO: count=9 first=1 curr=1 min=1 max=1 avg=1 std=0\n\n{line}\n\n{summary}")


def test_the_last_line_of_statistics_counts():
    found = timings("INFO: count=50 first=12 curr=14 min=11 max=25 avg=1.24027e+06 std=26 p5=11 median=13 p95=20")
    assert (found.calls, found.load_s, found.peak_rss_bytes, found.ignored) == (50, pytest.approx(3337e-6), None, "")
    assert (found.mean_s, *found.spread_s) == pytest.approx((1.24027, 13e-6, 11e-6, 25e-6))


@pytest.mark.parametrize(
    "line", ["count=1 curr=500", "count=4 curr=500(all same)", "I tflite  : count=3 curr=500(all same) p5=500 median=500 p95=500"]
)
def test_calls_that_all_took_the_same_time(line):
    found = timings(line)
    assert (found.mean_s, *found.spread_s) == pytest.approx((500e-6,) * 4)


def test_statistics_without_percentiles():
    assert timings("count=2 first=10 curr=30 min=10 max=30 avg=20 std=10").median_s == pytest.approx(20e-6)


def test_both_makes_of_the_summary():
    line = "count=2 first=10 curr=30 min=10 max=30 avg=20 std=10"
    peak = "INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.25\n"
    assert timings(line, summary=SUMMARY + peak).peak_rss_bytes == 93.25 * 2**20
    compiled = "INFO: [x.h:94] Model initialization: 110.00 ms\nINFO: [x.h:95] Peak memory:          73.41 MB\n"
    found = timings(line, summary=compiled)
    assert (found.load_s, found.peak_rss_bytes) == (0.11, round(73.41 * 2**20))
    flags = "WARN: Unconsumed cmdline flags: --use_xnnpack=true --graph2=x\n"
    assert timings(line, summary=flags + SUMMARY).ignored == "--use_xnnpack=true --graph2=x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tells no timings; it ends with: nothing"),
        ("INFO: count=1 curr=5\nERROR: Failed to invoke\n\n", "ends with: ERROR: Failed to invoke"),
        ("INFO: count=0\n" + SUMMARY, "counted no run: count=0"),
        ("INFO: count=1 curr=soon\n" + SUMMARY, "'soon' is not a number: count=1 curr=soon"),
    ],
)
def test_output_without_timings(text, message):
    with pytest.raises(TargetError, match=message):
        parse_benchmark_model(text)


BLOCK = """I0000 00:00:17.02 26280 litert_lm_lib.cc:424] {title}
    - Init Total: 1250.50 ms
    Prefill Turn 1: Processed 128 tokens in {prefill} duration.
      Prefill Speed: 1.00 tokens/sec.
    Decode Turn 1: Processed 64 tokens in {decode} duration.
"""


def block(prefill, decode, title="BenchmarkInfo:"):
    return BLOCK.format(prefill=prefill, decode=decode, title=title)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("372.565677ms", 0.372565677), ("4.918169165s", 4.918169165), ("1m2.5s", 62.5), ("1h0m1s", 3601), ("93us", 93e-6), ("120ns", 120e-9)],
)
def test_durations(text, seconds):
    (found,) = parse_litert_lm(block(text, "2s")).iterations
    assert found.prefill_s == pytest.approx(seconds)
    assert found == Iteration(1.2505, 128, found.prefill_s, 64, 2.0)
    assert found.time_to_first_token_s == pytest.approx(seconds + 2 / 64)


def test_every_iteration_and_none_of_the_medians():
    medians = "Aggregated BenchmarkInfo (median of 2 iterations):\n    Prefill Turn 1:\n      Prefill Speed: 9.00 tokens/sec.\n"
    text = block("1s", "2s") + "Peak system ram usage: 100.5MB.\n" + block("3s", "4s") + "Peak system ram usage: 90 MB\n" + medians
    found = parse_litert_lm(text)
    assert [item.prefill_s for item in found.iterations] == [1, 3]
    assert found.peak_rss_bytes == 100.5 * 2**20
    assert parse_litert_lm(block("1s", "2s") + "Peak system ram usage: -1MB.\n").peak_rss_bytes is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("E0000 model.cc:1] INTERNAL: no such file\n", "no BenchmarkInfo; it ends with: E0000 model.cc:1] INTERNAL: no such file"),
        (block("1s", "2s").replace("Decode Turn 1: Processed 64 tokens in 2s duration.", "No decode turns recorded."), "tells no decode"),
        (block("1s", "0"), "the duration '0' is not understood: Decode Turn 1"),
        (block("soon", "1s"), "the duration 'soon' is not understood: Prefill Turn 1: Processed 128 tokens in soon"),
        (block("1.2.3s", "1s"), "'1.2.3' is not a number"),
    ],
)
def test_output_without_benchmark_info(text, message):
    with pytest.raises(TargetError, match=message):
        parse_litert_lm(text)


def test_the_last_line_that_says_something():
    assert last_line("a\nb\n\n  \n") == "b"
    assert last_line("") == "nothing"
