"""Golden files as reviewable text: a tiny export's signatures, operators and weights.

`make golden` rewrites them; the diff is the review.
"""

import os
from pathlib import Path

import pytest

from flatlm.convert.signatures import signature_specs
from flatlm.convert.worker import CachingCompiler, CompilerHere
from flatlm.generative.inspect import inspect_file
from tests.models import export_fast, random_decoder, tiny_config

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def compiler() -> CachingCompiler:
    return CachingCompiler(CompilerHere)


@pytest.mark.parametrize("recipe", ["none", "fp16", "dynamic_int8", "weight_only_int8", "dynamic_int4_block32", "dynamic_int4_channel"])
def test_signatures_operators_and_weights(recipe: str, compiler: CachingCompiler, tmp_path: Path) -> None:
    specs = signature_specs((8,), prefill_logits=False)
    model = random_decoder(tiny_config(layers=3, bias=True, tied=recipe == "fp16"))
    path = export_fast(model, specs, tmp_path / "a.tflite", recipe, compiler)
    found, lines = inspect_file(path), []
    for signature in found.signatures:
        lines += [signature.name, *(f"  in  {name} {spec}" for name, spec in signature.inputs.items())]
        lines += [f"  out {name} {spec}" for name, spec in signature.outputs.items()]
        lines += [f"  {count:4} {name}" for name, count in signature.operators.items()]
    lines += [f"{scheme}: {count} tensors, {size} bytes" for scheme, (count, size) in found.weights.items()]
    text, golden = "\n".join(lines) + "\n", GOLDEN / f"{recipe}.txt"
    if os.environ.get("FLATLM_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
