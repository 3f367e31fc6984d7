"""The GGUF store: types, rows, which files are read, and what is refused."""

import struct
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints import gguf_file
from flatlm.utilities.checkpoints.gguf_file import QUANTIZED, SUPPORTED, GgufCheckpoint
from flatlm.utilities.checkpoints.gguf_header import read_metadata
from flatlm.utilities.checkpoints.gguf_paths import find_gguf
from flatlm.utilities.checkpoints.open import open_checkpoint
from tests.utilities.checkpoints.gguf_models import Kind, encode, write_gguf

HEADS = {"general.architecture": "llama", "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.embedding_length": 64}
PLAIN = {"general.architecture": "qwen2"}
VALUES = np.random.default_rng(0).standard_normal((48, 512)).astype(np.float32)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        GgufCheckpoint.open(path)
    return str(caught.value)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of two tensors of 48 and 6 rows."""
    return write_gguf(tmp_path / "model.gguf", PLAIN, {"token_embd.weight": VALUES, "output_norm.weight": VALUES[0]})


# ------------------------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("name", SUPPORTED)
def test_rows_are_those_of_the_whole_tensor(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind[name]
    encoded = encode(VALUES, kind)
    path = write_gguf(tmp_path / "model.gguf", PLAIN, {"token_embd.weight": VALUES}, lambda *_: kind)
    expected = torch.from_numpy(gguf.quants.dequantize(encoded, kind).reshape(VALUES.shape))
    assert torch.isfinite(expected).all() and expected.abs().max() > 0
    monkeypatch.setattr(gguf_file, "_CHUNK", 16384)  # so that a read takes several pieces
    with GgufCheckpoint.open(path) as store:
        record = store.tensors["model.embed_tokens.weight"]
        assert record.dtype == gguf_file.STORED.get(name, torch.float32) and record.shape == VALUES.shape
        assert torch.equal(store.read(record.name).float(), expected)
        for start, stop in ((0, 48), (0, 1), (17, 40), (47, 48), (5, 5)):
            assert torch.equal(store.rows(record.name, start, stop).float(), expected[start:stop])


def test_only_the_rows_asked_for_are_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GgufCheckpoint.open(small) as store:
        read = store._files[0].read_into
        sizes: list[int] = []
        monkeypatch.setattr(store._files[0], "read_into", lambda view, offset: (sizes.append(len(view)), read(view, offset))[1])
        store.rows("model.embed_tokens.weight", 3, 7)
        assert sizes == [4 * 512 * 4]


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q4_K"])
def test_queries_and_keys_are_rotated_back_by_rows(name: str, tmp_path: Path) -> None:
    """By the definition: pairs of neighbours become halves, within each head."""
    kind, rng = Kind[name], np.random.default_rng(1)
    original = rng.standard_normal((4 * 128, 256)).astype(np.float32)  # heads wider than a block
    stored = original.reshape(4, 2, 64, 256).swapaxes(1, 2).reshape(4 * 128, 256)
    path = write_gguf(tmp_path / "m.gguf", HEADS, {"blk.3.attn_q.weight": stored}, lambda *_: kind)
    whole = gguf.quants.dequantize(encode(stored, kind), kind).reshape(4, 64, 2, 256)
    expected = torch.from_numpy(np.concatenate([whole[:, :, 0], whole[:, :, 1]], axis=1).reshape(4 * 128, 256))
    with GgufCheckpoint.open(path) as store:
        (tensor,) = store.tensors
        assert tensor == "model.layers.3.self_attn.q_proj.weight"
        assert torch.equal(store.read(tensor).float(), expected)
        if name == "F32":
            assert torch.equal(store.read(tensor), torch.from_numpy(original))
        for start, stop in ((0, 3), (60, 70), (100, 400), (511, 512)):
            assert torch.equal(store.rows(tensor, start, stop).float(), expected[start:stop])


def test_merged_queries_keys_and_values_are_parted(tmp_path: Path) -> None:
    """As in early files of Phi-2."""
    heads = {"general.architecture": "phi2", "phi2.attention.head_count": 4, "phi2.attention.head_count_kv": 2, "phi2.embedding_length": 24}
    tensors = {"blk.1.attn_qkv.weight": VALUES, "blk.1.attn_qkv.bias": VALUES[0, :48]}
    with GgufCheckpoint.open(write_gguf(tmp_path / "m.gguf", heads, tensors)) as store:
        first = 0
        for part, rows in (("q", 24), ("k", 12), ("v", 12)):
            name = f"model.layers.1.self_attn.{part}_proj"
            assert store.tensors[f"{name}.weight"].shape == (rows, 512)
            assert torch.equal(store.rows(f"{name}.weight", 5, rows), torch.from_numpy(VALUES[first + 5 : first + rows]))
            assert torch.equal(store.read(f"{name}.bias"), torch.from_numpy(VALUES[0, first : first + rows]))
            first += rows
    wrong = write_gguf(tmp_path / "m.gguf", heads, {"blk.1.attn_qkv.weight": VALUES[:47]})
    assert "its rows are not those of 4 query heads and 2 key and value heads" in refusal(wrong)


def test_rows_far_apart_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {"general.architecture": "falcon", "falcon.attention.head_count": 4, "falcon.attention.head_count_kv": 2}
    values = np.arange(8 * 300 * 2, dtype=np.float32).reshape(8 * 300, 2)  # queries 0 to 3, keys 0 and 1, values 0 and 1
    file = write_gguf(tmp_path / "m.gguf", heads | {"falcon.embedding_length": 1200}, {"blk.0.attn_qkv.weight": values})
    with GgufCheckpoint.open(file) as store:
        (name,) = store.tensors
        read = store._files[0].read_into
        spans: list[tuple[int, int]] = []
        monkeypatch.setattr(store._files[0], "read_into", lambda view, offset: (spans.append((offset, len(view))), read(view, offset))[1])
        found = store.rows(name, 590, 610)  # the end of query 1, the beginning of key 0
        expected = np.concatenate([values[590:600], values[1200:1210]])
        assert torch.equal(found, torch.from_numpy(expected)) and [size for _, size in spans] == [80, 80]
        order = [0, 1, 4, 6, 2, 3, 5, 7]
        assert torch.equal(store.read(name), torch.from_numpy(values.reshape(8, 300, 2)[order].reshape(2400, 2)))


def test_a_quantized_vector_is_read_too(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", PLAIN, {})
    writer = gguf.GGUFWriter(path, "qwen2")
    encoded = encode(VALUES[0], Kind.Q8_0)
    writer.add_tensor("output_norm.weight", encoded, raw_dtype=Kind.Q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with GgufCheckpoint.open(path) as store:
        assert torch.equal(store.rows("model.norm.weight", 30, 70), torch.from_numpy(gguf.quants.dequantize(encoded, Kind.Q8_0)[30:70]))


def test_out_threads_and_closing(small: Path) -> None:
    with GgufCheckpoint.open(small) as store:
        name, out = "model.embed_tokens.weight", torch.empty(4, 512)
        assert store.rows(name, 2, 6, out) is out and torch.equal(out, torch.from_numpy(VALUES[2:6]))
        with pytest.raises(ValueError, match="out must be"):
            store.rows(name, 2, 6, torch.empty(4, 511))
        for start, stop in ((-1, 2), (2, 1), (0, 49)):
            with pytest.raises(ValueError, match="not within its 48 rows"):
                store.rows(name, start, stop)
        with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.weight'; it has 2 tensors"):
            store.read("lm_head.weight")
        wrong: list[int] = []

        def read(row: int) -> None:
            if not all(torch.equal(store.rows(name, row, row + 1)[0], torch.from_numpy(VALUES[row])) for _ in range(50)):
                wrong.append(row)

        threads = [threading.Thread(target=read, args=(row,)) for row in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
    store.close()
    with pytest.raises(ValueError, match="was closed"):
        store.read(name)


def test_the_fingerprint_sees_metadata_and_values(tmp_path: Path) -> None:
    def fingerprint(metadata: dict[str, Any], values: np.ndarray) -> str:
        with GgufCheckpoint.open(write_gguf(tmp_path / "m.gguf", metadata, {"token_embd.weight": values})) as store:
            return store.fingerprint()

    first = fingerprint(PLAIN, VALUES)
    assert first == fingerprint(PLAIN, VALUES) and len(first) == 64
    other = VALUES.copy()
    other[0, 0] += 1
    assert len({first, fingerprint({**PLAIN, "qwen2.rope.freq_base": 1.0}, VALUES), fingerprint(PLAIN, other)}) == 3


# ------------------------------------------------------------------------------------------------------------------- which files


def test_which_file_a_path_means(small: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj-model.gguf").write_bytes(b"GGUF")
    assert find_gguf(small) == small and find_gguf(tmp_path) == small
    with open_checkpoint(tmp_path) as store:
        assert store.directory == tmp_path and store.tensors["model.norm.weight"].file == small
    named_by_digest = small.rename(tmp_path / "sha256-0123")
    assert find_gguf(named_by_digest) == named_by_digest and find_gguf(tmp_path) is None
    assert find_gguf(tmp_path / "absent.gguf") == tmp_path / "absent.gguf" and find_gguf(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match=r"absent\.gguf: does not exist"):
        open_checkpoint(tmp_path / "absent.gguf")


def test_several_files_and_other_weights(small: Path, tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(small.read_bytes())
    with pytest.raises(CheckpointError, match=r"holds several GGUF files \(model-Q4_K_M\.gguf, model\.gguf\); give the path of one"):
        open_checkpoint(tmp_path)
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as store:
        assert set(store.tensors) == {"w"}


def test_a_split_model_is_one_checkpoint(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    write_gguf(first, {**PLAIN, "split.count": 2, "split.no": 0}, {"token_embd.weight": VALUES})
    assert "is one of 00002 files, of which m-00002-of-00002.gguf are not there" in refusal(first)
    write_gguf(second, {"general.architecture": "qwen2", "split.count": 2, "split.no": 1}, {"output.weight": VALUES[:3]})
    for path in (first, second, tmp_path):
        with open_checkpoint(path) as store:
            assert set(store.tensors) == {"model.embed_tokens.weight", "lm_head.weight"}
            assert torch.equal(store.read("lm_head.weight"), torch.from_numpy(VALUES[:3]))
    assert "is one of 2 files; give them their first names" in refusal(first.rename(tmp_path / "renamed.gguf"))


# ----------------------------------------------------------------------------------------------------------------------- refusals


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 66), np.uint8), raw_dtype=Kind.IQ2_XXS)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    message = refusal(path)
    assert "tensor 'blk.0.attn_q.weight' is stored as IQ2_XXS, which FlatLM does not read; it reads F32, F16, BF16, Q4_0" in message
    assert all(name in message for name in QUANTIZED)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<IQ", Kind.IQ2_XXS, 0), struct.pack("<IQ", 777, 0)))
    assert "is stored as type 777, which" in refusal(path)


def test_architectures_that_are_not_read_are_named(tmp_path: Path) -> None:
    message = refusal(write_gguf(tmp_path / "m.gguf", {"general.architecture": "mamba"}, {"token_embd.weight": VALUES}))
    assert "general.architecture is 'mamba'" in message and "falcon, gemma, gemma2" in message


def test_what_the_table_does_not_know_keeps_its_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", PLAIN, {"blk.0.ffn_gate_exps.weight": VALUES, "rope_freqs.weight": VALUES[0]})
    with GgufCheckpoint.open(path) as store:
        assert set(store.tensors) == {"blk.0.ffn_gate_exps.weight"}


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"general.architecture": "llama"}, "0 query heads"),
        ({**HEADS, "llama.attention.head_count_kv": 3}, "4 query heads and 3 key heads"),
        ({**HEADS, "llama.attention.head_count": 5, "llama.attention.head_count_kv": 5}, "not pairs for each of 5 heads"),
        ({**HEADS, "llama.attention.head_count": "four"}, "head_count = four"),
    ],
)
def test_heads_that_do_not_fit(metadata: dict[str, Any], what: str, tmp_path: Path) -> None:
    message = refusal(write_gguf(tmp_path / "m.gguf", metadata, {"blk.0.attn_q.weight": VALUES}))
    assert what in message and "blk.0.attn_q.weight" in message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[:3], "is truncated or corrupt: its header would end at byte 4 of 3"),
        (lambda data: b"GGML" + data[4:], "is not a GGUF file: it begins with b'GGML'"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "is GGUF version 1; FlatLM reads versions 2 and 3"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "of big-endian machines"),
        (lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:], "its counts of keys and tensors would end"),
        (lambda data: data[:24] + struct.pack("<Q", 2**63) + data[32:], "a key would end"),
        (lambda data: data[:-5000], "is truncated or corrupt: tensor 'token_embd.weight' ends at byte"),
        (lambda data: data[:100], "is truncated or corrupt"),
        (lambda data: data.replace(b"output_norm.weight", b"output_norm.weigh\xff"), "a tensor's name is not UTF-8 text"),
        (lambda data: data.replace(b"qwen2", b"qwen\xff"), "the value of 'general.architecture' is not UTF-8"),
        (lambda data: data.replace(struct.pack("<IQ", 1, 512), struct.pack("<IQ", 9, 512)), "has 9 dimensions, not 1 to 4"),
        (lambda data: data.replace(struct.pack("<QQ", 512, 48), struct.pack("<QQ", 2**40, 2**40)), "tensor 'token_embd.weight' has shape"),
        (
            lambda data: data.replace(struct.pack("<IQ", 0, 512 * 48 * 4), struct.pack("<IQ", 0, 512 * 48 * 4 + 1)),
            "is not a multiple of 32",
        ),
        (lambda data: data.replace(struct.pack("<IQ", 0, 512 * 48 * 4), struct.pack("<IQ", 0, 32)), "overlaps 'token_embd.weight'"),
        (lambda data: data.replace(b"GGUF", b""), "is not a GGUF file"),
        (lambda data: b"", "is empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_damaged_files_say_what_is_wrong(change: Any, what: str, small: Path) -> None:
    data = small.read_bytes()
    changed = change(data)
    assert changed != data
    small.write_bytes(changed)
    message = refusal(small)
    assert what in message and message.startswith(str(small)) and "\n" not in message


def test_duplicates_are_refused(small: Path) -> None:
    data = small.read_bytes()
    small.write_bytes(data.replace(struct.pack("<Q", 18) + b"output_norm.weight", struct.pack("<Q", 17) + b"token_embd.weight"))
    assert "tensor 'token_embd.weight' is there twice" in refusal(small)


def test_an_array_longer_than_the_file_is_refused_at_once(tmp_path: Path) -> None:
    """The library's own reader would go on for as many items as the file claims."""
    path = write_gguf(tmp_path / "m.gguf", {**PLAIN, "tokenizer.ggml.scores": [0.5, 0.25]}, {})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<IQ", 6, 2), struct.pack("<IQ", 6, 2**61)))
    with pytest.raises(CheckpointError, match=r"the array 'tokenizer\.ggml\.scores' would end at byte"):
        read_metadata(path)
    path.write_bytes(data.replace(struct.pack("<IQ", 6, 2), struct.pack("<IQ", 9, 2)))
    with pytest.raises(CheckpointError, match="value of the unknown type 9"):
        read_metadata(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_to_a_header_reading_is_right_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = {"token_embd.weight": VALUES[:4], "blk.0.attn_q.weight": VALUES, "blk.0.attn_k.weight": VALUES[:8]}
    content = bytearray(write_gguf(path, {**HEADS, "x.list": [1, 2, 3], "x.texts": ["a", "b"]}, tensors, lambda *_: Kind.Q8_0).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 500))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path.write_bytes(content)
    try:
        with GgufCheckpoint.open(path) as store:
            for name, record in store.tensors.items():
                assert store.read(name).shape == record.shape
    except CheckpointError:
        pass
