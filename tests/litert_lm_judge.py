"""The real LiteRT-LM, as the judge of bundles; and a model that tells which tokens it was given."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

VERSION = "0.18.1"

SEPARATOR, END = 3, 4
"""EchoModel's own tokens: "nothing to tell yet", and "that was all"."""


def litert_lm_command() -> Path:
    """The `litert-lm` command: env LITERT_LM, else beside this Python, else in a cached environment; skips if it cannot be had."""
    if named := os.environ.get("LITERT_LM"):
        return Path(named)
    beside = Path(sys.executable).with_name("litert-lm")
    return beside if beside.exists() else _installed(Path(tempfile.gettempdir()) / "flatlm-litert-lm")


def _installed(place: Path) -> Path:
    command = place / "bin/litert-lm"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not command.exists():
            venv.create(place, with_pip=True, clear=True)
            pip = [place / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", f"litert-lm=={VERSION}"]
            done = subprocess.run(pip, capture_output=True, text=True, timeout=900)
            if done.returncode:
                pytest.skip(f"litert-lm {VERSION} cannot be installed: {done.stderr.strip()[-200:]}")
    return command


def run_litert_lm(command: Path, bundle: Path, prompt: str, *options: str) -> str:
    """What LiteRT-LM prints for one prompt: the answer, or its error, for it exits with 0 on most of them."""
    arguments = [command, "run", bundle, "--prompt", prompt, "--backend", "cpu", "--cache", "no", *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"
    return done.stdout.removesuffix("\n")


_CONVERSE = """
import json, sys
from litert_lm import Backend, Engine

bundle, conversations = json.load(sys.stdin)
answers = []
with Engine(bundle, backend=Backend.CPU(), cache_dir=":nocache") as engine:
    for messages in conversations:
        with engine.create_conversation(messages=messages[:-1] or None) as conversation:
            try:
                answers.append(conversation.send_message(messages[-1])["content"][0]["text"])
            except RuntimeError as error:
                answers.append(str(error))
print(json.dumps(answers))
"""


def converse(command: Path, bundle: Path, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
    """LiteRT-LM's answer to the last message of each conversation, after those before; or its error."""
    python = command.with_name("python")
    done = subprocess.run(
        [python, "-c", _CONVERSE], input=json.dumps([str(bundle), conversations]), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"
    answers: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answers


class EchoModel(nn.Module):
    """A language model, as runtimes see one, whose answer is its prompt.

    Its cache of keys [1, 1, S, 1] holds tokens. `decode` at position p answers with the token at p - lag, with SEPARATOR before
    there is one, and with END once that is an answer of its own. So a prompt of n tokens, BOS included, is told after
    lag - n + 1 separators, token by token, if it is no longer than lag + 1.
    """

    def __init__(self, vocab: int, lag: int, *, decode: bool) -> None:
        super().__init__()
        self.vocab, self.lag, self.decode = vocab, lag, decode

    def forward(self, tokens: Tensor, input_pos: Tensor, kv_cache_k_0: Tensor, kv_cache_v_0: Tensor) -> dict[str, Tensor]:
        """One step: tokens [1, T], written to T consecutive slots from input_pos[0]; logits [1, 1, vocab]."""
        slots = torch.arange(kv_cache_k_0.shape[2], dtype=torch.int32)
        # Padding comes with position 0: only the first position counts.
        written = (slots == input_pos[:1, None] + torch.arange(tokens.shape[1], dtype=torch.int32)[:, None]).float()  # [T, S]
        told = (written * tokens.reshape(-1, 1).float()).sum(0)
        cache = kv_cache_k_0.reshape(-1) * (1 - written.sum(0)) + told
        out = {"kv_cache_k_0": cache.reshape(kv_cache_k_0.shape), "kv_cache_v_0": kv_cache_v_0 + 0.0}
        if self.decode:
            back = input_pos[0] - self.lag
            token = (cache * (slots == back).float()).sum()
            token = torch.where(token == SEPARATOR, float(END), token)
            token = torch.where(back < 0, float(SEPARATOR), token)
            distance = torch.arange(self.vocab).float() - token
            out["logits"] = (-distance * distance).reshape(1, 1, self.vocab)
        return out


def echo_model(*, vocab: int = 128, cache_length: int = 256, lag: int = 120, prefill: tuple[int, ...] = (8, 32)) -> bytes:
    """EchoModel as a `.tflite` with signatures `prefill_<T>` and `decode`."""
    from flatlm.convert.generic import Signatures

    def sample(length: int) -> dict[str, Tensor]:
        tokens, positions = torch.zeros(1, length, dtype=torch.int32), torch.arange(length, dtype=torch.int32)
        k, v = (torch.zeros(1, 1, cache_length, 1) for _ in range(2))  # two tensors: one, given twice, is traced as one input
        return {"tokens": tokens, "input_pos": positions, "kv_cache_k_0": k, "kv_cache_v_0": v}

    signatures = Signatures().signature("decode", EchoModel(vocab, lag, decode=True), sample_kwargs=sample(1))
    for length in prefill:
        signatures = signatures.signature(f"prefill_{length}", EchoModel(vocab, lag, decode=False), sample_kwargs=sample(length))
    return signatures.convert().content
