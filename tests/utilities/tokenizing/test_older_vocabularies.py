"""vocab.txt, vocab.json with merges.txt, and Chinese SentencePiece models: id by id what transformers, or the models' own rule, says."""

import io
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

CHINESE = [
    "北京是中华人民共和国的首都。",
    "北京故宫是中国最大的古代建筑群,建于明代。",
    "今天天气很好,我们去公园玩。",
    "清华大学 是 一所 著名的 大学",
    "人工智能将改变世界\n机器学习是它的一部分",
    "问题:中国的首都是哪里?答案:北京",
] * 30
ENGLISH = ["The Quick brown fox jumps over the lazy dog.", "Once upon a time there was a little girl; naïve café."] * 30
TEXTS = [
    *CHINESE[:6],
    *ENGLISH[:2],
    "北京 is [MASK] capital",
    "  two  spaces ",
    "",
    "a\nb\tc",
    "𠀀龥 éÉ ﬀ 😀",
    "[CLS] x [SEP]",
    "unaffable!?…",
]


def word_piece_vocabulary(path: Path, *, lowercase: bool = True, leave_out: str | None = None) -> Path:
    """A vocab.txt trained on Chinese and English text."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator([*CHINESE, *ENGLISH], trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False))
    vocabulary = sorted(made.get_vocab(), key=made.get_vocab().__getitem__)
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary if token != leave_out), "utf-8")
    return path


def byte_level_vocabulary(path: Path, special: list[str]) -> Path:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    made.train_from_iterator([*CHINESE, *ENGLISH], trainer)
    path.mkdir(exist_ok=True)
    made.model.save(str(path))
    return path


def sentencepiece_model(**options: Any) -> bytes:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([*CHINESE, *ENGLISH]), model_writer=stream, minloglevel=2, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def glm_model() -> bytes:
    return sentencepiece_model(vocab_size=300, character_coverage=1.0, hard_vocab_limit=False)


@pytest.fixture(scope="module")
def cpm_model() -> bytes:
    options = {"vocab_size": 300, "character_coverage": 1.0, "hard_vocab_limit": False, "user_defined_symbols": ["▂", "▃", "<eod>"]}
    return sentencepiece_model(**options)


def write_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


CONFIGS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"tokenize_chinese_chars": False},
    {"strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"mask_token": "首", "unk_token": "[PAD]"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_vocab_txt_gives_the_ids_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = word_piece_vocabulary(tmp_path, lowercase=config.get("do_lower_case", True))
    write_json(directory / "tokenizer_config.json", **config)
    expected = transformers.BertTokenizer.from_pretrained(str(directory))
    tokenizer = Tokenizer.load(directory)
    for text in TEXTS:
        ids = expected(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, add_special_tokens=False) == expected(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == expected.decode(ids, skip_special_tokens=True), text
    assert len(set(tokenizer.encode("once upon a time the lazy dog"))) > 8  # not all unknown


def test_vocab_txt_alone_that_lacks_a_special_token(tmp_path: Path) -> None:
    directory = word_piece_vocabulary(tmp_path, leave_out="[MASK]")
    expected, tokenizer = transformers.BertTokenizer.from_pretrained(str(directory)), Tokenizer.load(directory)
    assert [tokenizer.encode(text) for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]
    assert tokenizer.token_id("[MASK]") == expected.mask_token_id


def test_special_tokens_map_is_heeded(tmp_path: Path) -> None:
    directory = word_piece_vocabulary(tmp_path)
    lines = (directory / "vocab.txt").read_text().replace("[CLS]", "<begin>").replace("[SEP]", "<end>")
    (directory / "vocab.txt").write_text(lines)
    write_json(directory / "special_tokens_map.json", cls_token="<begin>", sep_token="<end>")
    assert Tokenizer.load(directory / "vocab.txt").encode("a") == Tokenizer.load(directory).encode("a")
    expected, tokenizer = transformers.BertTokenizer.from_pretrained(str(directory)), Tokenizer.load(directory)
    assert [tokenizer.encode(text) for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]
    assert tokenizer.encode("a")[0] == tokenizer.token_id("<begin>") is not None


def test_a_generator_with_vocab_txt_gets_no_end_behind_its_prompt(tmp_path: Path) -> None:
    directory = word_piece_vocabulary(tmp_path)
    with_ends = Tokenizer.load(directory).encode("北京")
    write_json(directory / "config.json", model_type="gpt2")
    assert Tokenizer.load(directory).encode("北京") == with_ends[1:-1]


def test_vocab_json_and_merges_give_the_ids_of_transformers(tmp_path: Path) -> None:
    directory = byte_level_vocabulary(tmp_path / "gpt2", ["<|endoftext|>"])
    expected, tokenizer = transformers.GPT2Tokenizer.from_pretrained(str(directory)), Tokenizer.load(directory)
    assert [tokenizer.encode(text) for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]
    assert tokenizer.eos_ids == (expected.eos_token_id,)
    directory = byte_level_vocabulary(tmp_path / "roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    write_json(directory / "config.json", model_type="roberta")
    expected, tokenizer = transformers.RobertaTokenizer.from_pretrained(str(directory)), Tokenizer.load(directory)
    assert [tokenizer.encode(text) for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("model_type", ["roberta", "bart"])
def test_pairs_are_parted_as_transformers_does(tmp_path: Path, model_type: str) -> None:
    directory = byte_level_vocabulary(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    write_json(directory / "config.json", model_type=model_type)
    expected = transformers.RobertaTokenizer.from_pretrained(str(directory))("a girl", "the fox")["input_ids"]
    found = Tokenizer.load(directory).encode_text("a girl", "the fox")
    assert list(found.ids) == expected
    assert not any(found.type_ids)


class PlainGlm(transformers.PreTrainedTokenizer):
    """GLM's Chinese tokenizer from its description: transformers' own machinery for special tokens, SentencePiece for what is between."""

    vocab_files_names: ClassVar = {"vocab_file": "cog-pretrain.model"}

    def __init__(self, vocab_file: str, **more: Any) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        super().__init__(**more)

    @property
    def vocab_size(self) -> int:
        return len(self.model)

    def get_vocab(self) -> dict[str, int]:
        return {self.model.id_to_piece(i): i for i in range(len(self.model))} | self.added_tokens_encoder

    def _tokenize(self, text: str, **more: Any) -> list[str]:
        return self.model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.model.id_to_piece(index)


BLANK_TEXTS = [
    *CHINESE[:6],
    "北京故宫是中国[MASK]非物质文化遗产。",
    "问题: 首都 [gMASK]",
    " [sMASK] 今天[MASK]很好 [MASK]",
    "[MASK]",
    "a [MASK] b",
]


def test_glms_chinese_tokenizer(tmp_path: Path, glm_model: bytes) -> None:
    (tmp_path / "cog-pretrain.model").write_bytes(glm_model)
    tokenizer, end = Tokenizer.load(tmp_path), len(sentencepiece.SentencePieceProcessor(model_proto=glm_model))
    names = {"<|endoftext|>": 0, "[SEP]": 1, "[CLS]": 2, "[MASK]": 3, "[UNK]": 4}
    names |= {"<|startofpiece|>": 6, "<|endofpiece|>": 7, "[sMASK]": 8, "[gMASK]": 9}
    assert {name: tokenizer.token_id(name) for name in names} == {name: end + number for name, number in names.items()}
    expected = PlainGlm(str(tmp_path / "cog-pretrain.model"))
    for name, number in names.items():
        added = tokenizers.AddedToken(name, lstrip=name.endswith("MASK]"), special=True)
        expected._added_tokens_decoder[end + number] = added
        expected._added_tokens_encoder[name] = end + number
    expected._update_trie()
    for text in BLANK_TEXTS:
        ids = expected.convert_tokens_to_ids(expected.tokenize(text))
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.encode(text) == [end + 2, *ids, end]
    assert tokenizer.decode(tokenizer.encode("北京是中国的首都")) == "北京是中国的首都"


@pytest.mark.parametrize("kind", ["vocab.txt", "vocab.json"])
def test_glms_english_tokenizers_have_its_tokens(tmp_path: Path, kind: str) -> None:
    make = word_piece_vocabulary if kind == "vocab.txt" else lambda path: byte_level_vocabulary(path, ["<|endoftext|>"])
    directory = make(tmp_path)
    end = Tokenizer.load(directory).vocab_size
    write_json(directory / "config.json", block_position_encoding=True)
    tokenizer = Tokenizer.load(directory)
    first = ["<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "[sMASK]"]
    if kind == "vocab.json":
        first = ["<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]"]
    assert [tokenizer.token_id(name) for name in first] == [*range(end, end + len(first))]
    assert tokenizer.eos_ids == (tokenizer.token_id("[PAD]" if kind == "vocab.txt" else "<|endoftext|>"),)
    ids = tokenizer.encode("The quick [MASK] fox [gMASK]", add_special_tokens=False)
    assert ids.count(tokenizer.token_id("[MASK]")) == 1 and ids[-1] == tokenizer.token_id("[gMASK]")
    assert tokenizer.encode("a [MASK]", add_special_tokens=False) == tokenizer.encode("a[MASK]", add_special_tokens=False)


def test_listed_tokens_go_before_glms_own(tmp_path: Path, glm_model: bytes) -> None:
    (tmp_path / "cog-pretrain.model").write_bytes(glm_model)
    write_json(tmp_path / "added_tokens.json", **{"<|startofpiece|>": 300, "[MASK]": 301, "[CLS]": 302})
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.token_id(name) for name in ("<|startofpiece|>", "[MASK]", "[gMASK]")] == [300, 301, None]


class Jieba(ModuleType):
    @staticmethod
    def cut(text: str) -> list[str]:
        """Words of two characters."""
        return [text[i : i + 2] for i in range(0, len(text), 2)]


@pytest.mark.parametrize("name", ["spiece.model", "chinese_vocab.model"])
def test_cpms_tokenizer_cuts_words_first(tmp_path: Path, cpm_model: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jieba = Jieba("jieba")
    jieba.__spec__ = ModuleSpec("jieba", None)
    monkeypatch.setitem(sys.modules, "jieba", jieba)
    (tmp_path / name).write_bytes(cpm_model)
    tokenizer, model = Tokenizer.load(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=cpm_model)
    for text in ["北京是中国的首都", "今天 天气\n很好", "a b  c"]:
        words = [word.translate(str.maketrans(" \n", "▂▃")) for word in Jieba.cut(text)]
        assert tokenizer.encode(text) == model.encode(" ".join(words))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_ids == (model.piece_to_id("<eod>"),)
    with pytest.raises(TokenizerError, match="cuts words"):
        tokenizer.to_bytes()


def test_cpms_tokenizer_without_jieba(tmp_path: Path, cpm_model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are the longest pieces that begin one."""
    monkeypatch.setattr("flatlm.utilities.tokenizing.cpm.find_spec", lambda name: None)
    (tmp_path / "spiece.model").write_bytes(cpm_model)
    tokenizer, model = Tokenizer.load(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=cpm_model)
    words = {model.id_to_piece(i)[1:] for i in range(len(model)) if model.id_to_piece(i).startswith("▁")}
    longest = max(words, key=len)
    assert model.encode(longest)[0] in tokenizer.encode(f"的{longest}")
    for text in ["北京是中国的首都", "今天 天气\n很好", " a b  c\n"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_of_another_kind_is_refused(tmp_path: Path, glm_model: bytes) -> None:
    directory = word_piece_vocabulary(tmp_path / "a")
    write_json(directory / "tokenizer_config.json", tokenizer_class="EsmTokenizer")
    with pytest.raises(TokenizerError, match=r"vocab.txt: belongs to a EsmTokenizer"):
        Tokenizer.load(directory)
    other = tmp_path / "b"
    other.mkdir()
    (other / "spiece.model").write_bytes(glm_model)  # without CPM's marks: ALBERT's, XLNet's, T5's
    with pytest.raises(TokenizerError, match=r"spiece.model is of a kind"):
        Tokenizer.load(other)
    (other / "cog-pretrain.model").write_bytes(b"nothing")
    with pytest.raises(TokenizerError, match=r"cog-pretrain.model: is not a SentencePiece model"):
        Tokenizer.load(other)
    (tmp_path / "d").mkdir()
    write_json(tmp_path / "d" / "vocab.json", a=0)  # without merges.txt: a speech model's, say
    with pytest.raises(TokenizerError, match=r"vocab.json is of a kind"):
        Tokenizer.load(tmp_path / "d")
    broken = byte_level_vocabulary(tmp_path / "c", ["<|endoftext|>"])
    (broken / "merges.txt").write_text("one\n")
    with pytest.raises(TokenizerError, match=r"merges.txt: has lines"):
        Tokenizer.load(broken)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [({"a": 0, "b": 1}, "a b", "has no piece 'ab'"), ({"a": 0, "b": 1, "ab": 2}, "a b", "has no cls_token '<s>' and no sep_token '</s>'")],
)
def test_a_vocabulary_that_lacks_tokens_is_refused(tmp_path: Path, vocabulary: dict[str, int], merges: str, message: str) -> None:
    write_json(tmp_path / "vocab.json", **vocabulary)
    (tmp_path / "merges.txt").write_text(f"{merges}\n")
    write_json(tmp_path / "config.json", model_type="roberta")
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_that_are_not_true_or_false_are_refused(tmp_path: Path, key: str) -> None:
    directory = word_piece_vocabulary(tmp_path)
    write_json(directory / "tokenizer_config.json", **{key: "no"})
    with pytest.raises(TokenizerError, match=rf"{key} = 'no' must be true or false"):
        Tokenizer.load(directory)


def test_a_kind_of_model_that_is_no_text_is_none(tmp_path: Path) -> None:
    directory = word_piece_vocabulary(tmp_path)
    before = Tokenizer.load(directory).encode("北京")
    write_json(directory / "config.json", model_type=["a"])
    assert Tokenizer.load(directory).encode("北京") == before
