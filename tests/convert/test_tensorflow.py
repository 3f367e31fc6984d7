"""TensorFlow's own TFLite interpreter reads our files too, and gives the same outputs. Needs the extra `tensorflow`."""

from pathlib import Path

import numpy as np
import pytest

from flatlm.convert.signatures import signature_specs
from tests.models import Signatures, export_fast, random_decoder, random_inputs, tiny_config


@pytest.mark.parametrize("recipe", ["none", "dynamic_int8", "dynamic_int4_block32"])
def test_tensorflows_interpreter_gives_the_same_outputs(recipe: str, tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="the extra `tensorflow` is not installed")
    interpreter = getattr(tensorflow.lite, "Interpreter", None)
    if interpreter is None:
        pytest.skip("this TensorFlow has no TFLite interpreter any more")
    model = random_decoder(tiny_config(layers=2))
    specs = signature_specs((8,), prefill_logits=True)
    path = export_fast(model, specs, tmp_path / "model.tflite", recipe)
    theirs, ours = interpreter(str(path), num_threads=1), Signatures(path)
    for spec in specs:
        inputs = random_inputs(model, spec.tokens, start=3)
        expected = ours.run(spec.name, inputs)
        got = theirs.get_signature_runner(spec.name)(**inputs)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert np.abs(got[name] - value).max() <= 1e-5, (spec.name, name)
