"""Bad input gets one clear error, exit status 2, and leaves what was there."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.cli import main
from tests.examples.references import Case, make_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_llama(Case("grouped_queries"), directory)
    return directory


def edit_config(**values: object) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        path = place / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def edit_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        tensors = load_file(place / "model.safetensors")
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, place / "model.safetensors")

    return edit


def put(row: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row, 3] = value
        return tensor

    return change


def truncate(place: Path) -> None:
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(place: Path) -> None:
    tensors = load_file(place / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, place / "model.safetensors")


def add_tensor(place: Path) -> None:
    save_file({**load_file(place / "model.safetensors"), "model.layers.0.self_attn.sinks": torch.zeros(4)}, place / "model.safetensors")


def corrupt_header(place: Path) -> None:
    path = place / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 40) + b"{" * 40)


def index_of(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (place / "model.safetensors").unlink()
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": name}}))

    return change


DOWN = "model.layers.1.mlp.down_proj.weight"
CASES = {
    "truncated shard": (truncate, "model.safetensors"),
    "corrupt header": (corrupt_header, "model.safetensors"),
    "no weights": (lambda place: (place / "model.safetensors").unlink(), "safetensors"),
    "index names a missing file": (index_of("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors"),
    "index leaves the directory": (index_of("../../etc/hostname"), "../../etc/hostname"),
    "missing tensor": (drop_tensor, "model.layers.2.mlp.up_proj.weight"),
    "unused tensor": (add_tensor, "model.layers.0.self_attn.sinks"),
    "wrong shape": (edit_config(intermediate_size=80), "[80, 64]"),
    "wrong dtype": (edit_tensor(DOWN, lambda t: t.to(torch.int32)), DOWN),
    "NaN": (edit_tensor(DOWN, put(7, float("nan"))), f"{DOWN} holds NaN or infinity (weight blocks.1.feed_forward.down.weight, row 7)"),
    "infinity": (edit_tensor("model.layers.1.self_attn.v_proj.weight", put(2, float("-inf"))), "model.layers.1.self_attn.v_proj.weight"),
    "one layer too many": (edit_config(num_hidden_layers=4), "model.layers.3."),
    "one layer too few": (edit_config(num_hidden_layers=2), "model.layers.2."),
    "no config": (lambda place: (place / "config.json").unlink(), "config.json is missing"),
    "config is not JSON": (lambda place: (place / "config.json").write_text("{"), "config.json is not JSON"),
    "config is a list": (lambda place: (place / "config.json").write_text("[]"), "config.json"),
    "unknown architecture": (edit_config(architectures=["LamaForCausalLM"]), "did you mean LlamaForCausalLM"),
    "unknown activation": (edit_config(hidden_act="quick_gelu"), "hidden_act"),
    "unread key": (edit_config(attention_sinks=4), "attention_sinks = 4"),
    "unread rope key": (edit_config(rope_parameters={"rope_theta": 1e4, "rope_type": "default", "beta_fast": 32}), "beta_fast"),
    "tokens were added to the model only": (edit_config(vocab_size=120), "set vocab_size to that"),
    "unknown rope scaling": (edit_config(rope_parameters={"rope_theta": 1e4, "rope_type": "ntk", "factor": 2.0}), "rope_type"),
    "heads that do not divide": (edit_config(num_key_value_heads=3), "num_key_value_heads"),
    "odd head width": (edit_config(head_dim=15), "head_dim"),
    "interleaved rope": (edit_config(rope_interleaved=True), "rope_interleaved"),
    "quantized already": (edit_config(quantization_config={"quant_method": "gptq"}), "quantization_config"),
    "negative size": (edit_config(hidden_size=-64), "hidden_size"),
    "size is text": (edit_config(hidden_size="64"), "hidden_size"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_broken_checkpoint_is_refused_by_name(name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = CASES[name]
    place = shutil.copytree(checkpoint, tmp_path / "broken")
    change(place)
    out = tmp_path / "out.tflite"
    out.write_bytes(b"the old file")
    assert main(["export", str(place), "-o", str(out), "--prefill", "4", "--kv-cache-len", "16", "--no-verify"]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert out.read_bytes() == b"the old file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out.tflite"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prefill", "32", "--kv-cache-len", "16"], "--prefill 32 is longer than the cache of 16 slots"),
        (["--prefill", "1"], "--prefill 1"),
        (["--kv-cache-len", "4096"], "64 positions"),
        (["--recipe", "int3"], "int3"),
        (["--recipe", "dynamic_int4_block128"], "128"),
        (["--model", "lama"], "did you mean llama"),
    ],
)
def test_an_impossible_request_is_refused(
    arguments: list[str], expected: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "out.tflite"), *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output in (tmp_path / "out.bin", tmp_path / "nowhere" / "out.tflite"):
        assert main(["export", str(checkpoint), "-o", str(output)]) == 2
        assert str(output.parent if output.suffix == ".tflite" else output) in capsys.readouterr().err
    (tmp_path / "folder.tflite").mkdir()
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "folder.tflite")]) == 2
    assert "is a directory" in capsys.readouterr().err


def test_a_known_key_can_be_ignored_by_name(checkpoint: Path, tmp_path: Path) -> None:
    place = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    edit_config(attention_sinks=4)(place)
    assert main(["check", str(place)]) == 2
    assert main(["check", str(place), "--ignore-config-key", "attention_sinks"]) == 0


def test_no_pickled_code_runs(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (place / "model.safetensors").unlink()
    marker = tmp_path / "it ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    torch.save({"model.norm.weight": Evil()}, place / "pytorch_model.bin")
    assert main(["export", str(place), "-o", str(tmp_path / "out.tflite")]) == 2
    assert "pytorch_model.bin" in capsys.readouterr().err
    assert not marker.exists()


EXPORT = [sys.executable, "-m", "flatlm.cli", "export"]
OPTIONS = ["--prefill", "4", "--kv-cache-len", "16", "--no-verify"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    out.write_bytes(b"the old file")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [*EXPORT, str(checkpoint), "-o", str(out), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 2, done.stderr
    assert str(out) in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == b"the old file"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tflite"]


@pytest.mark.slow
def test_a_small_disk_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    """On a file system of its own, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        command = [*EXPORT, str(checkpoint), "-o", str(disk / "out.tflite"), *OPTIONS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "free some space" in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.5, 4.0])
def test_a_killed_export_leaves_the_old_file(delay: float, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    out.write_bytes(b"the old file")
    process = subprocess.Popen([*EXPORT, str(checkpoint), "-o", str(out), *OPTIONS], stderr=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    if process.wait() == -signal.SIGKILL:
        assert out.read_bytes() == b"the old file"
    else:
        assert main(["inspect", str(out)]) == 0


def test_zero_rows_and_blocks_are_fine(tmp_path: Path) -> None:
    """Padded vocabularies and widths have them; a scale of zero would make the runtime refuse the file."""
    from flatlm.generative.runner import Runner

    make_llama(Case("grouped_queries"), tmp_path)
    edit_tensor("model.embed_tokens.weight", lambda t: torch.cat([t[:100], torch.zeros(28, 64)]))(tmp_path)
    edit_tensor("lm_head.weight", lambda t: torch.cat([t[:100], torch.zeros(28, 64)]))(tmp_path)
    edit_tensor(DOWN, lambda t: torch.cat([t[:, :64], torch.zeros(64, 32)], 1))(tmp_path)
    out = tmp_path / "out.tflite"
    options = ["--recipe", "dynamic_int4_block32", "--prefill", "4", "--kv-cache-len", "16", "--no-verify"]
    assert main(["export", str(tmp_path), "-o", str(out), *options]) == 0
    with Runner.open(out) as runner:
        logits = runner.step(5)
    assert np.isfinite(logits).all()
    assert not logits[100:].any()
    assert logits[:100].any()


def test_help_is_instant_and_loads_nothing() -> None:
    code = (
        "import sys, flatlm.cli; flatlm.cli.main(['--help']); print([m for m in ('torch', 'numpy', 'ai_edge_litert') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip().endswith("[]")
    assert time.perf_counter() - start < 3
