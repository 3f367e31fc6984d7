"""Tokenizers of every kind, made for the tests, and what transformers says of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flatlm.utilities.tokenizing.tokenizer import Tokenizer

TEXTS = [
    "Once upon a time",
    "Once upon a time, there was a little girl named Lily. She loved to play outside.",
    " one leading space",
    "  two",
    "trailing ",
    "a  b   c",
    "tab\tand\nnewline\r\n",
    "é 😀 中文 ﬀ ½ ậ e\u0301",
    "",
    " ",
    "<s>[INST] hi [/INST]",
    "Hi</s>\nyou",
    "a </s> b <unk><s>",
    "<0x41> ▁x \ufffd \u0000",
    "<|im_start|>user\nhi<|im_end|>",
    "as to",
]
CORPUS = [
    "Once upon a time there was a little girl who liked to play outside.",
    "She had a dog; the dog's name was Spot!",
    "déjà vu 中文 😀",
] * 20


def bpe_with_bytes() -> tokenizers.Tokenizer:
    """Like GPT-2's, Llama 3's and Qwen's: every byte is a character of the vocabulary."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def word_piece() -> tokenizers.Tokenizer:
    """Like BERT's."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made


def unigram() -> tokenizers.Tokenizer:
    """Like T5's."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False)
    )
    return made


def llama_like() -> tokenizers.Tokenizer:
    """Like Llama 2's: ▁ for spaces, a byte token for each byte that no other token covers, BOS first."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"▁Onceupoiastmhrlgwdvykbf",
        "on",
        "ce",
        "▁a",
        "ti",
        "me",
        "s▁",
    ]
    made = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("o", "n"), ("c", "e"), ("▁", "a"), ("t", "i"), ("m", "e"), ("s", "▁")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


MAKERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bpe_with_bytes": bpe_with_bytes, "word_piece": word_piece, "unigram": unigram, "llama_like": llama_like,
}  # fmt: skip
LLAMA_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def directory_of(path: Path, data: str, tokenizer_config: dict[str, Any] | None = None, /, **files: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(data)
    if tokenizer_config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def copy_of(original: Path, path: Path, names: list[str], config: dict[str, Any] | None = None) -> Path:
    path.mkdir()
    for name in names:
        shutil.copyfile(original / name, path / name)
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def reference(directory: Path) -> Any:
    """transformers' own tokenizer for the directory."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


def agrees(directory: Path, texts: list[str] = TEXTS) -> Tokenizer:
    """Asserts that ids and texts are those of transformers."""
    ours, theirs = Tokenizer.load(directory), reference(directory)
    for text in texts:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text
        assert "".join(pieces(ours, ids)) == ours.decode(ids)
    assert ours.bos_id == theirs.bos_token_id
    assert theirs.eos_token_id is None or theirs.eos_token_id in ours.eos_ids
    assert ours.kind == "sentencepiece" or ours.vocab_size == max(theirs.get_vocab().values()) + 1
    if ours.kind == "hf" and not ours.settings.split_special_tokens:
        again = Tokenizer.from_bytes("hf", ours.to_bytes())
        assert [again.encode(text) for text in texts] == [ours.encode(text) for text in texts]
    return ours


def pieces(tokenizer: Tokenizer, ids: list[int], context: list[int] | None = None) -> list[str]:
    stream = tokenizer.stream_decoder(context or [])
    return [*(stream.push(i) for i in ids), stream.finish()]
