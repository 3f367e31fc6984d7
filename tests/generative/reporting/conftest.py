import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatlm.generative.benchmarking.record import BenchmarkRecord, DepthSpeeds, Machine, Measure
from flatlm.quantize.recipes import RECIPES
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.results import save_result

DEMO = Path(__file__).resolve().parents[3] / "flatlm" / "assets" / "demo_model"
MACHINE = Machine("a processor", "x86_64", 2, 16 << 30, "Linux 6.1", "ai-edge-litert 2.3.0")
RECIPES_SHOWN = ("fp16", "dynamic_int8", "weight_only_int8", "static_int8", "dynamic_int4_block32", "dynamic_int4_channel")
SIZES = (2.0, 1.0, 1.01, 1.02, 0.56, 0.51)
KLS = (1e-8, 3e-4, 2e-4, 2.5e-3, 8e-3, 2e-2)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a bundle with int8 weights; not verified."""
    output = tmp_path_factory.mktemp("demo") / "demo.litertlm"
    export(ExportRequest(DEMO, output, RECIPES["dynamic_int8"], prefill_lengths=(16,), kv_cache_len=64))
    return output


@pytest.fixture
def fill(tmp_path: Path) -> Callable[[int], Path]:
    """A folder with results of so many files, of as many models as it takes."""

    def made(count: int) -> Path:
        folder = tmp_path / "results"
        folder.mkdir()
        for index in range(count):
            model, which = divmod(index, len(RECIPES_SHOWN))
            write_results(folder / f"model{model}-{RECIPES_SHOWN[which]}.tflite", model, which)
        return folder

    return made


def write_results(file: Path, model: int, which: int, *, label: str | None = None) -> None:
    """`label`: what stands wherever a name may."""
    recipe, size, kl = label or RECIPES_SHOWN[which], int(SIZES[which] * 1e8 * (model + 1)), KLS[which]
    rules = [{"pattern": label or "*.attention.*", "scheme": label or "dynamic_int8"}, {"pattern": "*", "scheme": "none"}]
    verification = {"against": "transformers", "max_abs_error": 0.5, "mean_kl": kl, "top1_agreement": 0.98, "tokens_compared": 256}
    verification |= {"greedy_tokens_equal": 20, "greedy_tokens": 32, "passed": which != 5, "bound": {"mean_kl": 0.01}}
    manifest = {
        "flatlm": "0.1.0",
        "family": label or f"family{model}",
        "recipe": {"name": recipe, "rules": rules, "summary": label or "what it does", "warning": None, "method": {"rounding": "nearest"}},
        "checkpoint": f"{model}" * 64,
        "parameters": 10**8 * (model + 1),
        "signatures": ["prefill_16", "decode", *([label] if label else [])],
        "kv_cache_len": 512,
        "vocab_size": 1000,
        "versions": {"torch": label or "2.13"},
        "verification": verification,
    }
    signature = {"name": label or "decode", "inputs": {"tokens": "int32[1,1]", "kv_cache_k_0": "float32[1,2,9,4]"}, "outputs": {}}
    signature |= {"operators": {label or "FULLY_CONNECTED": 25, "ADD": 3}}
    save_result(file, "manifest", manifest)
    weights = {label or "int8 per channel": [25, size - 9000]}
    save_result(file, "inspection", {"file": str(file), "bytes": size, "signatures": [signature], "weights": weights, "manifest": manifest})
    evaluation: dict[str, Any] = {"tokens": 2000, "nll_per_token": 2.0, "perplexity": 7.389 * (1 + kl), "context": 512, "stride": 256}
    evaluation |= {"bits_per_byte": 0.9 + kl, "against": label or "transformers", "mean_kl": kl, "p99_kl": 9 * kl, "top1_agreement": 0.97}
    evaluation |= {"perplexity_ratio": 1 + kl, "perplexity_ratio_standard_error": 0.0004, "greedy": {"prompts": 16, "equal_to_the_end": 9}}
    evaluation |= {"tasks": {label or "last_word": {"acc": 0.71, "acc_stderr": 0.03}}}
    save_result(file, "evaluation", evaluation)
    depths = tuple(DepthSpeeds(d, speed(9000 / (1 + d / 500)), speed(900 / (1 + d / 900) / SIZES[which])) for d in (0, 128, 256))
    record = BenchmarkRecord(file.name, size, label or "local", MACHINE, 2, True, 128, 64, depths, speed(0.02), speed(0.3), 2 * size)
    save_result(file, "benchmark", [record.to_dict() | {"noise": [label] if label else []}])
    layers = [[layer, kl**0.5 * (1 + layer / 9), 1.3 * kl**0.5] for layer in range(8)]
    save_result(file, "layers", {"tokens": 128, "layers": layers, "logits_error": 2 * kl**0.5})


def write_comparison(folder: Path, *, label: str | None = None) -> None:
    figures = {"depth": 64, "ratio": 1.3, "low": 1.2, "high": 1.4, "distinguishable": True}
    ratios = [
        {"subject": label or "ours", "to": label or peer, "measure": f"{what}_tokens_per_second"} | figures
        for peer in ("llama.cpp", "litert-torch")
        for what in ("prefill", "decode")
    ]
    subjects = [{"name": label or "ours", "file": "a.tflite", "prefill_tokens_per_second": 900.0, "load_s": 0.2}, {"name": "llama.cpp"}]
    said = {"notes": [label or "peers pick tokens themselves"], "noise": [label or "it was busy"], "machine": {"cpu": label or "one"}}
    comparison = {"subjects": subjects, "ratios": ratios} | said
    (folder / "peers.comparison.json").write_text(json.dumps(comparison))


def speed(value: float) -> Measure:
    return Measure(value, value * 0.97, value * 1.03, 5)


def write_file(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file
