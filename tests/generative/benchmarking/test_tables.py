import csv
import io
from dataclasses import replace

from flatlm.generative.benchmarking.tables import as_csv, as_markdown, rounded
from tests.generative.benchmarking.test_record import RECORD


def test_csv():
    rows = list(csv.DictReader(io.StringIO(as_csv([RECORD, replace(RECORD, target="local")]))))
    assert [(row["target"], row["depth"]) for row in rows] == [("ssh://pi", "0"), ("ssh://pi", "512"), ("local", "0"), ("local", "512")]
    first, second = rows[:2]
    assert first["prefill_tokens_per_second"] == "2.5" and first["prefill_tokens_per_second_max"] == "9.0"
    assert second["prefill_tokens_per_second"] == "" and second["decode_tokens_per_second_min"] == "4.0"
    assert first["load_s"] == "" and first["peak_rss_bytes"] == "99"
    assert first["noise"] == "another process took 40 % of a core"
    assert first["weight_cache"] == "True"
    assert all(None not in row and None not in row.values() for row in rows)


def test_markdown():
    lines = as_markdown([RECORD]).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2] == "| story.tflite | ssh://pi | Cortex-A76 | 4 | 0 | 2.5 (1 to 9) | 5 | 0.5 |  | 0.0 |"
    assert lines[3] == "| story.tflite | ssh://pi | Cortex-A76 | 4 | 512 |  | 4.25 (4 to 4.5) | 0.5 |  | 0.0 |"
    assert lines[-1] == "- story.tflite on ssh://pi: another process took 40 % of a core."
    off = as_markdown([replace(RECORD, weight_cache=False)]).splitlines()[2]
    assert off.startswith("| story.tflite | ssh://pi | Cortex-A76 | 4, no weight cache | 0 |")
    assert "quiet" not in as_markdown([replace(RECORD, noise=())])


def test_three_figures():
    assert [rounded(value) for value in (12345.6, 123.4, 12.34, 0.0012345)] == ["12,346", "123", "12.3", "0.00123"]
