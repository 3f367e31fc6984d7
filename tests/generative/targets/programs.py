"""Stand-ins for the programs that a phone runs: scripts that know their flags and write as they do, in made-up numbers."""

import sys
from pathlib import Path

_MOODS = """mood=$(cat "$DEVICE/mood" 2>/dev/null)
case "$mood" in
  crash) echo "ERROR: Failed to allocate tensors!" >&2; exit 1;;
  signal) kill -SEGV $$;;
  hang) echo working; touch "$DEVICE/started"; sleep 600;;
  garbage) echo "INFO: count=5 first=12 avg=fast" >&2; echo "INFO: Inference timings in us: Init: 3337, First" >&2; exit 0;;
  silent) echo "INFO: Loaded model" >&2; exit 0;;
esac
"""

_TFLITE_FLAGS = """graph signature_to_run_for num_threads num_runs min_secs max_secs warmup_runs warmup_min_secs input_layer
input_layer_shape input_layer_value_files report_peak_memory_footprint use_xnnpack xnnpack_weight_cache_file_path"""

_BENCHMARK_MODEL = f"""#!/bin/sh
for flag in {" ".join(_TFLITE_FLAGS.split())}; do usage="$usage
	--$flag=	string	optional	some words"; done
case "$1" in
  --help) echo "ERROR: usage: $0 $usage" >&2; exit 1;;
  --helpfull) echo "WARN: Unconsumed cmdline flags: --helpfull" >&2; echo "ERROR: Please specify --graph" >&2; exit 1;;
esac
echo "$*" >> "$DEVICE/calls"
{_MOODS}
case "$*" in
  *signature_to_run_for=decode*) n=8; init=4000; first=900; mean=800; low=700; high=1000;;
  *) n=3; init=3000; first=5000; mean=4100; low=4000; high=5000;;
esac
cat >&2 <<END
INFO: STARTING!
INFO: Graph: [model.tflite]
INFO: Initialized session in 3.337ms.
INFO: Running benchmark for at least 1 iterations and at least 0 seconds but terminate if exceeding 86400 seconds.
INFO: count=1 curr=9000 p5=9000 median=9000 p95=9000

INFO: Running benchmark for at least $n iterations and at least 0 seconds but terminate if exceeding 86400 seconds.
INFO: count=$n first=$first curr=$mean min=$low max=$high avg=$mean std=40 p5=$low median=$mean p95=$high

INFO: Inference timings in us: Init: $init, First inference: 9000, Warmup (avg): 9000, Inference (avg): $mean
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE.
INFO: Memory footprint delta from the start of the tool (MB): init=2.5 overall=8.5
INFO: Overall peak memory footprint (MB) via periodic monitoring: 25.5
INFO: Memory status at the end of exeution:
INFO: - VmRSS              : 25 MB
END
"""

_LITERT_LM = f"""#!/bin/sh
case "$1" in
  --help) echo "$0: --backend (Executor backend); --model_path (Model path)"; exit 1;;
  --helpfull) cat "$DEVICE/lm_flags"; exit 1;;
esac
echo "$*" >> "$DEVICE/calls"
{_MOODS}
echo "I0000 00:00:1787447197.028690   26280 litert_lm_lib.cc:499] Choose backend: cpu" >&2
block() {{
  cat >&2 <<END
I0000 00:00:1787447197.028690   26280 litert_lm_lib.cc:424] BenchmarkInfo:
  Init Phases (2):
    - Init Model assets: 1.50 ms
    - Init Total: 512.05 ms
--------------------------------------------------
  Time to first token: 0.52 s
--------------------------------------------------
  Prefill Turns (Total 1 turns):
    Prefill Turn 1: Processed 16 tokens in $1 duration.
      Prefill Speed: 32.00 tokens/sec.
--------------------------------------------------
  Decode Turns (Total 1 turns):
    Decode Turn 1: Processed 8 tokens in $2 duration.
      Decode Speed: 50.00 tokens/sec.
--------------------------------------------------
I0000 00:00:1787447197.128690   26280 litert_lm_lib.cc:474] Peak system ram usage: $3MB.
I0000 00:00:1787447197.128690   26280 litert_lm_lib.cc:477] Peak private footprint: 9000.5MB.
END
}}
block 1.25s 2s 700
case "$*" in *num_iterations*)
  block 500ms 160ms 812.5
  block 400ms 200ms 800
  block 1m0.5s 80000us 801
  cat >&2 <<END
I0000 00:00:1787447197.028690   26280 litert_lm_lib.cc:424] Aggregated BenchmarkInfo (median of 4 iterations):
    Prefill Turn 1:
      Prefill Speed: 1.00 tokens/sec.
END
esac
"""

LM_FLAGS = """backend model_path benchmark benchmark_prefill_tokens benchmark_decode_tokens num_cpu_threads async max_num_tokens
num_iterations report_peak_memory_footprint disable_cache cache_dir"""

_REAL = f"""#!{sys.executable}
import sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter

FLAGS = "{" ".join(_TFLITE_FLAGS.split())}"
given = dict(item.removeprefix("--").split("=", 1) for item in sys.argv[1:] if "=" in item)
if not given:
    sys.exit("".join(f"--{{name}}=\\n" for name in FLAGS.split()))
assert given.keys() <= set(FLAGS.split()), given
start = time.perf_counter()
interpreter = Interpreter(given["graph"], num_threads=int(given["num_threads"]))
name = given["signature_to_run_for"]
runner = interpreter.get_signature_runner(name)
load = time.perf_counter() - start
details = runner.get_input_details()
tensors = sorted(details.values(), key=lambda item: item["index"])  # a graph's inputs are its first tensors, in its order
keys = {{item["index"]: key for key, item in details.items()}}
shapes = given["input_layer_shape"].split(":")
files = [item.split(":")[1] for item in given["input_layer_value_files"].split(",")]
assert len(tensors) == len(shapes) == len(files) == len(given["input_layer"].split(","))
inputs = {{}}
for tensor, shape, file in zip(tensors, shapes, files):
    assert shape == ",".join(map(str, tensor["shape"])), (shape, tensor)
    inputs[keys[tensor["index"]]] = np.fromfile(file, tensor["dtype"]).reshape(tensor["shape"])
print("positions", inputs["input_pos"].tolist(), file=open("../seen", "a"))
def call():
    start = time.perf_counter()
    runner(**inputs)
    return round((time.perf_counter() - start) * 1e6) + 1
for count in (int(given["warmup_runs"]), int(given["num_runs"])):
    times = [call() for _ in range(count)]  # without the half second of warm-up
    mean = sum(times) / count
    print(f"INFO: count={{count}} first={{times[0]}} curr={{times[-1]}} min={{min(times)}} max={{max(times)}} avg={{mean}} std=1")
print(f"INFO: Inference timings in us: Init: {{load * 1e6}}, First inference: 1, Warmup (avg): 1, Inference (avg): 1")
"""


def benchmark_model(folder: Path) -> Path:
    return _program(folder / "benchmark_model", _BENCHMARK_MODEL)


def real_benchmark_model(folder: Path) -> Path:
    """One that really runs the file, in LiteRT's Python runtime, with the inputs that its flags give."""
    return _program(folder / "benchmark_model", _REAL)


def litert_lm(folder: Path) -> Path:
    """Its flags are in the device's file lm_flags."""
    return _program(folder / "litert_lm_advanced_main", _LITERT_LM)


def _program(path: Path, code: str) -> Path:
    path.write_text(code)
    return path
