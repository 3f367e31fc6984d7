"""What is read from the public load tool, from what it has printed for real servers."""

import pytest

from benchmarks.hey_output import HEADERS, Load

HEADER = "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset\n"
FOUR = """0.2090,0.0004,0.0000,0.0001,0.2080,0.0004,200,0.0049
0.0664,0.0000,0.0000,0.0000,0.0661,0.0002,200,0.2140
0.0730,0.0000,0.0000,0.0000,0.0729,0.0001,200,0.2803
0.1215,0.0000,0.0000,0.0000,0.1213,0.0002,200,0.3533
"""
"""So few that its own summary has no 95 %, and has the slowest as its 50 %."""
REFUSED = """0.0057,0.0001,0.0000,0.0001,0.0053,0.0002,429,0.0008
0.3146,0.0003,0.0000,0.0002,0.3140,0.0001,200,0.0004
"""


def test_few_and_slow_requests_have_all_figures() -> None:
    load = Load.read(HEADER + FOUR, asked=4)
    assert load.seconds == pytest.approx(0.3533 + 0.1215)
    assert (load.part_ms(50), load.part_ms(95)) == pytest.approx((73.0, 209.0))
    assert load.row(tokens=64) == ["8.4", "539", "73.0", "209.0", "4 of 200"]


def test_many_are_ranked() -> None:
    lines = "".join(f"{number / 1000:.4f},0,0,0,0,0,200,0.0000\n" for number in range(100, 0, -1))
    load = Load.read(HEADER + lines, asked=100)
    assert [load.part_ms(part) for part in (1, 50, 95, 100)] == pytest.approx([1, 50, 95, 100])


def test_refused_and_lost_requests_are_counted_and_not_timed() -> None:
    load = Load.read(HEADER + REFUSED, asked=5)
    assert load.part_ms(50) == pytest.approx(314.6)
    assert load.row(tokens=64) == ["3.2", "203", "314.6", "314.6", "1 of 200, 1 of 429, 3 without an answer"]


def test_no_answer_at_all_is_said() -> None:
    row = Load.read(HEADER, asked=2).row(tokens=64)
    assert row == ["0.0", "0", "-", "-", "2 without an answer"] and len(row) == len(HEADERS)
