"""Tiny checkpoints for authors' models, every parameter random."""

import json
from pathlib import Path
from typing import Any

import flatlm
from tests.examples.references import LLAMA_BASE, Case, make_reference

HERE = Path(__file__).parent
LLAMA_MAP, GEMMA_MAP, GEMMA_BLOCKS = (HERE / f"{name}.py" for name in ("llama_modules", "gemma_plain", "gemma_blocks"))
GEMMA_BASE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}


def llama(directory: Path, *, decided: bool = False, **config: Any) -> Any:
    base = {**LLAMA_BASE, "num_hidden_layers": 2, "attention_bias": True, **config}
    return make_reference(Case("llama", base), directory, decided=decided)


def gemma(directory: Path, **config: Any) -> Any:
    return make_reference(Case("gemma", {**GEMMA_BASE, **config}, "gemma", "GemmaForCausalLM"), directory)


def rewrite(directory: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    path = directory / "config.json"
    values = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), "utf-8")


def refusal(directory: Path, module_map: Path | None = None) -> str:
    check = flatlm.check_model(directory, custom_module_map=module_map)
    assert check.problem is not None and not check.ok
    assert check.problem in str(check)
    return str(check.problem)


def written(folder: Path, text: str, name: str = "map.py") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path
