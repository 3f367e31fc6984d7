import json
import math
from dataclasses import replace

import pytest

from flatlm.generative.benchmarking.record import BenchmarkRecord, DepthSpeeds, Machine, Measure

RECORD = BenchmarkRecord(
    file="story.tflite",
    file_bytes=1234,
    target="ssh://pi",
    machine=Machine("Cortex-A76", "aarch64", 4, 8 << 30, "Linux 6.6", "ai-edge-litert 2.3.0"),
    threads=4,
    weight_cache=True,
    prefill_tokens=128,
    decode_tokens=64,
    depths=(DepthSpeeds(0, Measure.of([3.0, 1.0, 9.0, 2.0]), Measure.of([5.0])), DepthSpeeds(512, None, Measure.of([4.0, 4.5]))),
    time_to_first_token_s=Measure.of([0.5]),
    load_s=None,
    peak_rss_bytes=99,
    noise=("another process took 40 % of a core",),
)


def test_median_of_runs():
    assert Measure.of([3.0, 1.0, 9.0, 2.0]) == Measure(2.5, 1.0, 9.0, 4)


def test_json_and_back():
    found = json.loads(json.dumps(RECORD.to_dict()))
    assert found["prefill_tokens_per_second"] == 2.5
    assert found["load_s"] is None
    assert found["spread"]["decode_tokens_per_second"] == {"median": 5.0, "minimum": 5.0, "maximum": 5.0, "runs": 1}
    assert BenchmarkRecord.from_dict(found | {"added_later": 1}) == RECORD


@pytest.mark.parametrize("depth", [None, "0", 0.5, True, [], math.nan])
def test_a_depth_is_a_whole_number(depth):
    found = RECORD.to_dict()
    found["depths"][1]["depth"] = depth
    with pytest.raises(ValueError, match="depths has to be one whole number or more, not"):
        BenchmarkRecord.from_dict(found)


def test_there_is_a_depth():
    with pytest.raises(ValueError, match=r"depths has to be one whole number or more, not \[\]"):
        BenchmarkRecord.from_dict(RECORD.to_dict() | {"depths": []})


@pytest.mark.parametrize("change", [{"target": ["local"]}, {"machine": RECORD.to_dict()["machine"] | {"cpu": []}}])
def test_names_are_text(change):
    with pytest.raises(ValueError, match="has to be text, not"):
        BenchmarkRecord.from_dict(RECORD.to_dict() | change)


def test_speeds_are_those_of_the_smallest_depth_in_any_order():
    turned = replace(RECORD, depths=RECORD.depths[::-1])
    assert turned.smallest_depth == 0 and turned.decode_tokens_per_second == Measure.of([5.0])
    assert turned.prefill_tokens_per_second == RECORD.prefill_tokens_per_second == Measure(2.5, 1.0, 9.0, 4)
