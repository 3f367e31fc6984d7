"""Conversations in every style of template, through a checkpoint's bundle: the ids that LiteRT-LM's model sees are transformers'."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from flatlm.convert.bundle import MODEL_OFFSET, finish_bundle, read_bundle
from flatlm.utilities.bundling import BundleFinisher
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.chat_styles import QUESTION, STYLES, TURNS, ChatStyle, conversations
from tests.litert_lm_judge import END, converse, echo_model, litert_lm_command

pytestmark = pytest.mark.slow  # converts a model, and may install LiteRT-LM

LETTERS = ["<unk>", "<s>", "</s>", "~", "<end>", *(chr(c) for c in range(32, 126)), "\n", "é"]
"""As the judge's model has them: "~" for nothing to tell yet, and "<end>" after all is told."""
CACHE, LAG = 512, 250


@pytest.fixture(scope="session")
def litert_lm() -> Path:
    return litert_lm_command()


@pytest.fixture(scope="session")
def long_echo() -> bytes:
    return echo_model(cache_length=CACHE, lag=LAG)


def make_checkpoint(directory: Path, style: ChatStyle, **config: Any) -> list[str]:
    """A tokenizer of letters, whose post-processor adds BOS, and the style's special tokens; returns the vocabulary."""
    pieces = [*LETTERS, *(token for token in style.tokens if token not in LETTERS)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text, bos = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": p} | flags for i, p in enumerate(pieces) if i < 3 or i >= len(LETTERS)],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": [], "unk_token": "<unk>"},
    }
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": style.bos, "eos_token": style.eos, "unk_token": "<unk>"}
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({**named, "chat_template": style.template, **config}))
    return pieces


def bundle_of(directory: Path, model: bytes) -> Path:
    path = directory.with_suffix(".litertlm")
    path.write_bytes(bytes(MODEL_OFFSET) + model)
    BundleFinisher(directory, CACHE)(path, len(model), {})
    return path


def without_stop_tokens(path: Path) -> None:
    """The style's own end of a turn is part of what the judge's model tells."""
    bundle = read_bundle(path)
    metadata = replace(bundle.metadata, stop_token_ids=(END,))
    finish_bundle(path, model_size=bundle.model_size, tokenizer=bundle.tokenizer, metadata=metadata)


def answer(tokens: Sequence[str]) -> str:
    """What EchoModel answers to a prompt of these tokens: text and count together tell them."""
    return "~" * (LAG - len(tokens) + 1) + "".join(tokens)


@pytest.mark.parametrize("name", STYLES)
def test_the_ids_of_a_conversation(litert_lm: Path, tmp_path: Path, long_echo: bytes, name: str) -> None:
    style, directory = STYLES[name], tmp_path / "model"
    pieces = make_checkpoint(directory, style)
    path = bundle_of(directory, long_echo)
    assert pieces.index(style.eos) in read_bundle(path).metadata.stop_token_ids
    without_stop_tokens(path)
    reference, asked = AutoTokenizer.from_pretrained(directory), conversations(style)
    heard = converse(litert_lm, path, list(asked.values()))
    for (which, messages), got in zip(asked.items(), heard, strict=True):
        ids = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert len(ids) <= LAG
        assert got == answer([pieces[i] for i in ids]), which


def test_what_a_template_refuses_is_refused(litert_lm: Path, tmp_path: Path, long_echo: bytes) -> None:
    style, directory = STYLES["Gemma"], tmp_path / "model"
    make_checkpoint(directory, style)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert "failed" in converse(litert_lm, bundle_of(directory, long_echo), [system])[0]


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_the_ids_of_a_conversation_with_sentencepiece(litert_lm: Path, tmp_path: Path, long_echo: bytes, dummy_prefix: bool) -> None:
    """Control tokens of the model, and a token that was added to it, in text that LiteRT-LM gives to SentencePiece."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(map(chr, range(33, 126)))] * 9),
        model_writer=model,
        model_type="char",
        vocab_size=120,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        byte_fallback=False,
        user_defined_symbols=["~", "<end>", "\n"],
        minloglevel=2,
    )
    template = "{% for m in messages %}{{ bos_token + '<|' + m.role + '|>\n' + m.content + eos_token + '<|im_end|>' }}{% endfor %}"
    named = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "tokenizer_config.json").write_text(json.dumps({**named, "added_tokens_decoder": {"105": {"content": "<|im_end|>"}}}))
    path = bundle_of(directory, long_echo)
    without_stop_tokens(path)
    reference = Tokenizer.load(directory)
    messages = [*TURNS, QUESTION]
    ids = reference.apply_chat_template(messages)
    assert ids.count(105) == ids.count(1) == len(messages)
    text = reference.render_chat(messages)
    assert converse(litert_lm, path, [messages]) == ["~" * (LAG - len(ids) + 1) + text]
