"""Every kind of tokenizer, carried by a bundle: the ids that the bundle's gives are those of the library that made it.

The texts hold every byte that UTF-8 can, emoji of several characters, scripts with and without spaces, code, and special tokens.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flatlm.convert.bundle import MODEL_OFFSET, read_bundle
from flatlm.errors import TokenizerError
from flatlm.utilities.bundling import BundleFinisher, bundled_tokenizer
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.tokenizing.made_tokenizers import MAKERS, pieces, reference

LEADS = [*range(0xC2, 0xE0), *range(0xE0, 0xF0), *range(0xF0, 0xF5)]
CODE = "def f(x: int) -> str:\n\treturn f\"{x:>08.3f}\"  # 1_000_000\n\n\nif __name__ == '__main__':\n    print(f(42))\r\n"
TEXTS = [
    "".join(map(chr, range(0x80))),
    *(" ".join(map(chr, range(first, first + 0x80))) for first in (0x80, 0x100, 0x180)),
    "".join(
        bytes([lead, *(0x90 if lead in (0xF0, 0xE0) else 0x80 for _ in range(1 + (lead > 0xDF) + (lead > 0xEF)))]).decode(errors="replace")
        for lead in LEADS
    ),
    "".join(chr(0x1F000 + 7 * i) + chr(0x4E00 + i) for i in range(64)),
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇪🇺🇯🇵 👨🏿‍🚀 ✈️ 1️⃣ 😀😀",
    "中文分词测试\uff0c没有空格。日本語のテキスト、カタカナ。한국어 문장입니다. 𠮷野家",
    "مرحبا بالعالم، هذا نص عربي. שלום עולם हिन्दी में ไทย",
    "e\u0301 \u00e9 ﬁ ½ Å Ω ậ İı ß ǅ \u200b\u200d\ufeff\u00a0\u3000x",
    CODE,
    "    \n\n  \t\t \r\n \n   x   y\n\n\n",
    "     ",
    "\n",
    " ",
    "",
    "I'm you're WE'LL they'd he's don'T 'tis",
    "1234567890 3.14159 0x1F 12,345,678 ١٢٣ ²³",
    "HTTPServer camelCase snake_case kebab-case https://a.b/c?d=e&f#g",
    "a<|end|>b <|end|> c<s>d</s> e [CLS] [SEP] <unk><|im_start|>user\nhi<|im_end|>\n<0x0A>",
    "Once upon a time there was a dog; the dog's name was Spot! " * 5,
]
"""Surrogates are no text; 0xC0, 0xC1 and 0xF5 on are no bytes of UTF-8."""
CORPUS = [*TEXTS[5:], *["the quick brown fox jumps over the lazy dog", "hello world", CODE]] * 6
TEXTS.append("two zebras")  # which no tokenizer has learned
CHAT = ["<|im_start|>", "<|im_end|>", "<think>"]

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How tiktoken's vocabularies cut a text into words: cl100k_base (and Llama 3), Qwen 2, o200k_base."""


def test_the_texts_hold_every_byte_of_utf8() -> None:
    assert set("".join(TEXTS).encode()) == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 256)}


def tiktoken_style(pattern: str, *, nfc: bool = False, bos: bool = False) -> tokenizers.Tokenizer:
    """A word that is a token is one, whatever the merges say."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True, byte_fallback=False))
    if nfc:
        made.normalizer = normalizers.NFC()
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), by_bytes])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    # A word that no merges lead to, as tiktoken's ranks have them.
    state = json.loads(made.to_str())
    state["model"]["vocab"]["Ġzebras"] = len(state["model"]["vocab"])
    made = tokenizers.Tokenizer.from_str(json.dumps(state))
    made.add_special_tokens([AddedToken("<|begin|>"), AddedToken("<|end|>")])
    if bos:
        single = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", made.token_to_id("<|begin|>"))])
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), single])
    return made


def cased_word_piece() -> tokenizers.Tokenizer:
    made = MAKERS["word_piece"]()
    made.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=True)
    return made


def unigram_with_bytes() -> tokenizers.Tokenizer:
    """As transformers writes T5's and XLM-R's: the SentencePiece charsmap is NFKC, roughly; bytes fall back."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    state = json.loads(made.to_str())
    state["model"]["byte_fallback"] = True
    state["added_tokens"] = state["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(state))


@dataclass(frozen=True)
class Kind:
    make: Callable[[], tokenizers.Tokenizer]
    lossless: bool = False


KINDS = {
    "byte-level BPE": Kind(MAKERS["bpe_with_bytes"], lossless=True),
    "tiktoken, GPT-4's words": Kind(lambda: tiktoken_style(GPT4), lossless=True),
    "tiktoken, Llama 3": Kind(lambda: tiktoken_style(GPT4, bos=True), lossless=True),
    "tiktoken, Qwen 2": Kind(lambda: tiktoken_style(QWEN, nfc=True)),
    "tiktoken, GPT-4o's words": Kind(lambda: tiktoken_style(GPT4O), lossless=True),
    "Llama 2": Kind(MAKERS["llama_like"], lossless=True),
    "WordPiece": Kind(MAKERS["word_piece"]),
    "WordPiece, cased": Kind(cased_word_piece),
    "unigram": Kind(MAKERS["unigram"]),
    "unigram with bytes": Kind(unigram_with_bytes),
}


def bundle_of(directory: Path) -> Tokenizer:
    """The tokenizer of a bundle that was made for the directory."""
    finish, path = BundleFinisher(directory, 64), directory.with_suffix(".litertlm")
    model = b"\x1c\0\0\0TFL3" + bytes(64)
    path.write_bytes(bytes(MODEL_OFFSET) + model)
    finish(path, len(model), {})
    return bundled_tokenizer(path)


def checkpoint(directory: Path, made: tokenizers.Tokenizer, **config: Any) -> Path:
    directory.mkdir()
    made.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", KINDS)
def test_ids_and_text_of_tokenizers(tmp_path: Path, name: str) -> None:
    made = KINDS[name].make()
    ours = bundle_of(checkpoint(tmp_path / "model", made))
    for text in TEXTS:
        for special in (True, False):
            ids = made.encode(text, add_special_tokens=special).ids
            assert ours.encode(text, add_special_tokens=special) == ids, text
        assert ours.decode(ids) == made.decode(ids, skip_special_tokens=True), text
        assert "".join(pieces(ours, ids)) == ours.decode(ids)
        if KINDS[name].lossless and "<" not in text:
            assert ours.decode(ids) == text
    assert max(i for text in TEXTS for i in made.encode(text).ids) > 200 or "WordPiece" in name or name == "unigram"


@pytest.mark.parametrize("name", KINDS)
def test_tokens_added_beyond_the_vocabulary(tmp_path: Path, name: str) -> None:
    """Named in tokenizer_config.json only, as fine-tunes do: their ids follow the vocabulary's."""
    made = KINDS[name].make()
    size = made.get_vocab_size()
    added = {str(size + i): {"content": text, "special": i < 2, "normalized": False} for i, text in enumerate(CHAT)}
    directory = checkpoint(tmp_path / "model", made, added_tokens_decoder=added, eos_token="<|im_end|>")
    ours, theirs = bundle_of(directory), reference(directory)
    assert [ours.token_id(text) for text in CHAT] == [size, size + 1, size + 2]
    assert (ours.vocab_size, ours.eos_ids) == (size + 3, (size + 1,))
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n", "x<think> y <|im_end|>"]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), text


def test_a_word_of_the_vocabulary_is_one_token_whatever_the_merges_say(tmp_path: Path) -> None:
    made = tiktoken_style(GPT4)
    ours = bundle_of(checkpoint(tmp_path / "model", made))
    assert made.token_to_id("Ġzebras") in ours.encode("two zebras")
    without = json.loads(made.to_str())
    without["model"]["ignore_merges"] = False
    assert made.token_to_id("Ġzebras") not in tokenizers.Tokenizer.from_str(json.dumps(without)).encode("two zebras").ids


# ---------------------------------------------------------------------------------------------------------- SentencePiece's files


def train_sentencepiece(**options: Any) -> bytes:
    model = io.BytesIO()
    options = {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity", **options}
    lines = [line for text in CORPUS for line in text.replace("\0", "").split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, vocab_size=700, hard_vocab_limit=False, **options
    )
    return model.getvalue()


SENTENCEPIECE = {
    "unigram": {"model_type": "unigram"},
    "BPE": {"model_type": "bpe"},
    "unigram, NFKC, T5's spaces": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "unigram without bytes": {"model_type": "unigram", "byte_fallback": False},
    "BPE with symbols": {"model_type": "bpe", "user_defined_symbols": ["<|im_start|>", "<|im_end|>"], "split_digits": True},
    "BPE without a first space": {"model_type": "bpe", "add_dummy_prefix": False},
}


@pytest.fixture(scope="session")
def trained() -> Callable[[str], bytes]:
    return cache(lambda name: train_sentencepiece(**SENTENCEPIECE[name]))


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_ids_and_text_of_sentencepiece(tmp_path: Path, trained: Callable[[str], bytes], name: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(trained(name))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained(name))
    ours = bundle_of(directory)
    assert ours.kind == "sentencepiece"
    for text in TEXTS:
        if any(special in text for special in ("<s>", "</s>", "<unk>")):
            continue  # SentencePiece itself finds none in a text
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        if theirs.unk_id() not in ids:  # which SentencePiece shows as " ⁇ ", and transformers leaves out
            assert ours.decode(ids) == theirs.decode(ids), text
        assert "".join(pieces(ours, ids)) == ours.decode(ids)
        if theirs.decode(ids) == text:
            assert ours.decode(ours.encode(text)) == text


CHAT_TEMPLATE = "{% for m in messages %}{{ '<s><|im_start|>' + m.role + '\n' + m.content + '<|im_end|></s>' }}{% endfor %}"
CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  a dog "}]


def sentencepiece_checkpoint(directory: Path, data: bytes, **config: Any) -> Path:
    """With CHAT's first two tokens added beyond the vocabulary, a gap before them, where the model has none of its own."""
    size = sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size()
    config = {"bos_token": "<s>", "eos_token": "</s>", **config}
    if b"<|im_start|>" not in data:
        config["added_tokens_decoder"] = {str(size + 3 + i): {"content": text} for i, text in enumerate(CHAT[:2])}
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(data)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("prefix", ["first", "never"])
@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_what_lies_beside_a_sentencepiece_model_is_in_the_bundle_too(
    tmp_path: Path, trained: Callable[[str], bytes], name: str, prefix: str, chat: bool
) -> None:
    config: dict[str, Any] = {"add_prefix_space": False} if prefix == "never" else {}
    directory = sentencepiece_checkpoint(tmp_path / "model", trained(name), **config | ({"chat_template": CHAT_TEMPLATE} if chat else {}))
    loaded, ours = Tokenizer.load(directory), bundle_of(directory)
    assert (ours.kind, ours.vocab_size, ours.eos_ids) == ("sentencepiece", loaded.vocab_size, (2,))
    for text in [*TEXTS, "<s><|im_start|>user\nhi there<|im_end|></s>  x"]:
        ids = loaded.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == loaded.decode(ids), text
        assert "".join(pieces(ours, ids)) == ours.decode(ids)


@pytest.mark.parametrize("prefix", ["first", "never"])
@pytest.mark.parametrize("name", [name for name, options in SENTENCEPIECE.items() if not options.get("remove_extra_whitespaces")])
def test_sentencepiece_alone_finds_a_chats_special_tokens(tmp_path: Path, trained: Callable[[str], bytes], name: str, prefix: str) -> None:
    """As LiteRT-LM reads the bundle's section: the model, and nothing else."""
    config: dict[str, Any] = {"add_prefix_space": False} if prefix == "never" else {}
    directory = sentencepiece_checkpoint(tmp_path / "model", trained(name), chat_template=CHAT_TEMPLATE, **config)
    loaded = Tokenizer.load(directory)
    bundle_of(directory)
    alone = sentencepiece.SentencePieceProcessor(model_proto=read_bundle(directory.with_suffix(".litertlm")).tokenizer.data)
    ids = loaded.apply_chat_template(CONVERSATION)
    assert alone.encode(loaded.render_chat(CONVERSATION)) == ids
    assert ids.count(1) == ids.count(2) == ids.count(loaded.token_id("<|im_end|>")) == 2


def test_a_chat_without_special_tokens_first_begins_with_a_space(tmp_path: Path, trained: Callable[[str], bytes]) -> None:
    template = "{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}"
    directory = sentencepiece_checkpoint(tmp_path / "model", trained("BPE"), chat_template=template)
    loaded = Tokenizer.load(directory)
    alone = sentencepiece.SentencePieceProcessor(model_proto=loaded.to_bytes())
    assert alone.encode("a dog</s>a") == loaded.encode("a dog</s>a", add_special_tokens=False)


def test_a_chat_that_sentencepiece_cannot_serve_is_refused(tmp_path: Path, trained: Callable[[str], bytes]) -> None:
    directory = sentencepiece_checkpoint(tmp_path / "model", trained("BPE"), chat_template=CHAT_TEMPLATE, legacy=True)
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.model: with a chat template and legacy = true, each stretch .* write a tokenizer"
    ):
        BundleFinisher(directory, 64)  # before any work


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"control": 1}', b'{"control": [9999, -1, "x"], "prefixed": true}'])
def test_notes_that_are_none(trained: Callable[[str], bytes], note: bytes) -> None:
    plain = Tokenizer.from_bytes("sentencepiece", trained("BPE"))
    noted = Tokenizer.from_bytes("sentencepiece", trained("BPE") + b"\xc2\x3e" + bytes([len(note)]) + note)
    assert noted.encode("a dog</s>") == plain.encode("a dog</s>")
    with pytest.raises(TokenizerError, match="is not a SentencePiece model"):
        Tokenizer.from_bytes("sentencepiece", b"junk\xc2\x3e")
