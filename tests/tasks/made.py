"""Tiny checkpoints for tasks: encoders with every head, a WordPiece tokenizer, a CRF; in the folders that FlagAI's users have."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tests.examples.references import randomise

WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "rome", "with", "anna", "maria", "from", "new", "york", "city"),
    *("in", "and", "he", "she", "it", "is", "was", ".", "!", "?", ",", *"中文北京大学在我"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}


def save_tokenizer(directory: Path) -> None:
    """Words, their ends `##s` and `##ing`, and single characters of Chinese."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, "##s", "##ing"])}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(SPECIAL)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(directory)


def make_bert(directory: Path, head: str, *, seed: int = 0, spread: float = 0.3, **config: Any) -> Any:
    """transformers' model with that head, every parameter random, and its tokenizer."""
    model_class = getattr(transformers, f"Bert{head}")
    model = model_class(transformers.BertConfig(**{**CONFIG, **config})).eval()
    randomise(model, seed=seed, spread=spread)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model


def named(labels: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def add_crf(directory: Path, *, seed: int = 1, flagai: bool = False) -> dict[str, torch.Tensor]:
    """A CRF beside a checkpoint's labels, strong enough to change paths."""
    generator = torch.Generator().manual_seed(seed)
    count = len(LABELS)
    names = {"crf.transitions": (count, count), "crf.start_transitions": (count,), "crf.end_transitions": (count,)}
    shapes: dict[str, tuple[int, ...]] = {"crf_layer.trans": (count, count)} if flagai else names
    tensors = {name: 3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    path = directory / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})
    return tensors
