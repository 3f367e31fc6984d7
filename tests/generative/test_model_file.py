from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import TensorSpec
from flatlm.generative.model_file import read_model_file
from flatlm.generative.runner import Runner
from tests.generative.toy_model import LAYERS, H, K, S, V

FLOAT, INT = np.dtype("float32"), np.dtype("int32")


def parsed(path):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))


def packed(model) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def signature(model, name):
    return next(item for item in model.signatureDefs if item.signatureKey == name.encode())


@pytest.fixture(scope="module")
def external_file(tiny_file, tmp_path_factory) -> Path:
    """The tiny file with its large constants after the flatbuffer, at offsets, as FlatLM's linker writes them."""
    model = parsed(tiny_file)
    moved = [buffer for buffer in model.buffers if buffer.data is not None and len(buffer.data) > 1000]
    weights = [bytes(buffer.data) for buffer in moved]
    for i, buffer in enumerate(moved):
        buffer.data, buffer.offset, buffer.size = None, (i + 4) << 14, len(weights[i])
    content = packed(model)
    assert moved and len(content) < moved[0].offset
    for buffer, data in zip(moved, weights, strict=True):
        content += bytes(buffer.offset - len(content)) + data
    path = tmp_path_factory.mktemp("external") / "external.tflite"
    path.write_bytes(content)
    return path


def test_tells_signatures_shapes_and_sizes(tiny_file):
    file = read_model_file(tiny_file)
    assert (file.offset, file.size, file.cache_length, file.vocab_size) == (0, tiny_file.stat().st_size, S, V)
    assert [spec.name for spec in file.prefill] == ["prefill_4", "prefill_16"]
    assert file.decode.inputs["tokens"] == TensorSpec((1, 1), INT)
    assert file.decode.outputs["logits"] == TensorSpec((1, 1, V), FLOAT)
    assert len(file.decode.caches) == 2 * LAYERS
    assert file.decode.caches["kv_cache_v_1"] == TensorSpec((1, K, H, S), FLOAT)
    assert file.prefill[1].inputs["input_pos"] == TensorSpec((16,), INT)


def test_weights_at_offsets_run_as_those_inside_do(tiny_file, external_file, random_ids):
    ids = random_ids(20)
    with Runner.open(tiny_file) as inside, Runner.open(external_file) as outside:
        inside.prefill(ids)
        outside.prefill(ids)
        np.testing.assert_array_equal(inside.step(1), outside.step(1))


@pytest.mark.parametrize("kind", ["tiny_file", "external_file"])
def test_a_file_cut_anywhere_is_refused_before_the_runtime_sees_it(kind, request, tmp_path):
    whole = request.getfixturevalue(kind).read_bytes()
    path = tmp_path / "cut.tflite"
    for size in [*range(40), *np.linspace(40, len(whole) - 64, 60, dtype=int).tolist()]:
        path.write_bytes(whole[:size])
        with pytest.raises(RuntimeFileError, match=r"cut\.tflite (is (empty|corrupt|not a TFLite)|has no signature)"):
            read_model_file(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), min_size=1, max_size=20))
def test_bytes_changed_anywhere_are_a_typed_error_or_a_model(tiny_file, tmp_path, changes):
    content = bytearray(tiny_file.read_bytes())
    for place, value in changes:
        content[place] = value
    path = tmp_path / "changed.tflite"
    path.write_bytes(content)
    try:
        assert read_model_file(path).decode.name == "decode"
    except RuntimeFileError as error:
        assert "changed.tflite" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"{}", "is empty"), (b"PK\x03\x04 a zip file, surely", "is not a TFLite model: its bytes 4 to 8 are b' a z'")],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "other.tflite"
    path.write_bytes(content)
    with pytest.raises(RuntimeFileError, match=f"other.tflite {message}"):
        Runner.open(path)


def test_no_file(tmp_path):
    with pytest.raises(RuntimeFileError, match=r"absent\.tflite cannot be read: No such file"):
        Runner.open(tmp_path / "absent.tflite")
    with pytest.raises(RuntimeFileError, match="cannot be read: Is a directory"):
        Runner.open(tmp_path)


def rename_decode(model):
    signature(model, "decode").signatureKey = b"serve"


def drop_positions(model):
    inputs = signature(model, "prefill_4").inputs
    inputs.remove(next(item for item in inputs if item.name == b"input_pos"))


def drop_cache_output(model):
    outputs = signature(model, "prefill_16").outputs
    outputs.remove(next(item for item in outputs if item.name == b"kv_cache_k_0"))


def drop_logits(model):
    outputs = signature(model, "decode").outputs
    outputs.remove(next(item for item in outputs if item.name == b"logits"))


def reshape(model, name, item_name, shape):
    item = next(item for item in signature(model, name).inputs if item.name == item_name)
    model.subgraphs[signature(model, name).subgraphIndex].tensors[item.tensorIndex].shape = np.array(shape, np.int32)


def other_cache(model):
    reshape(model, "prefill_4", b"kv_cache_v_1", [1, K, H, S + 1])


def two_sequences(model):
    reshape(model, "decode", b"tokens", [2, 1])


def extra_input(model):
    item = schema.TensorMapT()
    item.name, item.tensorIndex = b"lora_scale", 0
    signature(model, "decode").inputs.append(item)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_decode, "has no signature named decode.*prefill_4, prefill_16, serve"),
        (drop_positions, "signature prefill_4 must take input_pos, int32 of rank 1"),
        (extra_input, "signature decode takes inputs that are not understood: lora_scale"),
        (drop_cache_output, "signature prefill_16 must take and give the same kv_cache"),
        (other_cache, "signature prefill_4 must take and give the same kv_cache"),
        (drop_logits, "decode must take one token and give logits"),
        (two_sequences, "only batches of one sequence"),
    ],
)
def test_other_conventions_are_refused_by_name(tiny_file, tmp_path, edit, message):
    model = parsed(tiny_file)
    edit(model)
    path = tmp_path / "edited.tflite"
    path.write_bytes(packed(model))
    with pytest.raises(RuntimeFileError, match=message):
        Runner.open(path)


def test_an_operator_that_the_runtime_lacks_is_named(tiny_file, tmp_path):
    model = parsed(tiny_file)
    code = next(code for code in model.operatorCodes if code.builtinCode == schema.BuiltinOperator.SOFTMAX)
    code.version = 99
    path = tmp_path / "newer.tflite"
    path.write_bytes(packed(model))
    with pytest.raises(RuntimeFileError, match=r"newer\.tflite cannot be loaded by the LiteRT runtime: .*SOFTMAX"):
        Runner.open(path)
