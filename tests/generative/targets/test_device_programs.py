"""What programs are asked and what becomes of their answers, without a device."""

from dataclasses import replace

import pytest

from flatlm.errors import TargetError
from flatlm.generative.benchmarking.record import Measure
from flatlm.generative.model_file import read_model_file
from flatlm.generative.targets.device_programs import BenchmarkModel, Plan
from tests.generative.toy_model import V


class _Paper:
    """A place that runs nothing and keeps what it was asked."""

    model = "model.tflite"

    def __init__(self, output):
        self.asked, self.outputs = [], {"": output}

    def run(self, arguments):
        self.asked.append(list(arguments))
        signature = next(flag.rpartition("=")[2] for flag in arguments if "signature" in flag)
        return self.outputs.get(signature, self.outputs[""])

    def put(self, name, content):
        raise AssertionError

    put_zeros = put


COMPILED = """INFO: STARTING!
INFO: count=1 curr=9000 p5=9000 median=9000 p95=9000

INFO: count=3 first=2000 curr=2000 min=1000 max=4000 avg=2300 std=40 p5=1000 median=2000 p95=4000

INFO: [benchmark_litert_model.h:94] Model initialization: 250.00 ms
INFO: [benchmark_litert_model.h:98] Inference (avg):      2.30 ms (3 runs)
INFO: [benchmark_litert_model.h:120] Peak memory:          64.00 MB
"""


def test_compiled_models_own_benchmark_model_draws_its_inputs(tiny_file):
    program = BenchmarkModel(frozenset({"graph", "num_runs", "signature_to_run_for", "use_cpu"}))
    read = read_model_file(tiny_file)
    file = replace(read, levels=(replace(read.levels[-1], cache_length=200),))
    plan = Plan(file, prefill=16, decode=8, depths=(0,), runs=3, warmup=1, threads=2, weight_cache=True)
    with pytest.raises(TargetError, match=f"too many for a context of 200 and {V} tokens"):
        program.check(plan)
    with pytest.raises(TargetError, match="measures at no depth but 0"):
        program.check(replace(plan, depths=(0, 4)))
    with pytest.raises(TargetError, match="cannot choose a signature"):
        BenchmarkModel(frozenset({"graph", "num_runs"})).check(plan)
    place = _Paper(COMPILED)
    findings = program.measure(plan, place)
    assert findings.weight_cache is False
    assert findings.peak_rss_bytes == 64 * 2**20
    assert findings.load_s == Measure(0.25, 0.25, 0.25, 4)
    assert findings.depths[0].prefill_tokens_per_second == Measure(*(pytest.approx(16 / t) for t in (2e-3, 4e-3, 1e-3)), runs=3)
    assert not any("input_layer" in flag or "xnnpack" in flag for flags in place.asked for flag in flags)
    with pytest.raises(TargetError, match=r"knows no --signature_to_run_for"):
        program.measure(plan, _Paper(COMPILED + "WARN: Unconsumed cmdline flags: --signature_to_run_for=decode\n"))


def test_a_prompt_is_read_as_the_runner_reads_it(tiny_file):
    """36 tokens: two calls of prefill_16 and one of prefill_4, or what else is cheapest; each signature is measured once."""
    program = BenchmarkModel(frozenset({"graph", "num_runs", "signature_to_run_for"}))
    plan = Plan(read_model_file(tiny_file), prefill=36, decode=8, depths=(0,), runs=2, warmup=1, threads=2, weight_cache=True)
    place = _Paper(COMPILED)
    place.outputs["prefill_4"] = COMPILED.replace("median=2000", "median=500")
    record = program.measure(plan, place)
    asked = [flag.rpartition("=")[2] for flags in place.asked for flag in flags if "signature" in flag]
    assert asked == ["decode", "decode", "prefill_16", "prefill_4"]
    assert record.depths[0].prefill_tokens_per_second.median == pytest.approx(36 / (2 * 2e-3 + 0.5e-3))
    assert record.time_to_first_token_s.median == pytest.approx(2 * 2e-3 + 0.5e-3 + 2.3e-3)
