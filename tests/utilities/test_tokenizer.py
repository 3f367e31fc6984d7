"""The tokenizer: ids as transformers gives them, text in pieces, settings from many files, and what is wrong with them."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizer import Tokenizer, TokenizerSettings
from flatlm.utilities.tokenizer_settings import AddedToken, read_settings

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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: make().to_str() for name, make in MAKERS.items()}


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


# ------------------------------------------------------------------------------------------------------- the same as transformers


@pytest.mark.parametrize("name", ["stories260K", "llama_i192"])
def test_trained_checkpoints(shared: Path, name: str) -> None:
    directory = shared / "checkpoints" / name
    tokenizer = agrees(directory)
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 407, 261, 378]) == "Once upon a time"
    assert (tokenizer.kind, tokenizer.source, tokenizer.vocab_size) == ("hf", directory / "tokenizer.json", 512)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (1, (2,), None)
    assert tokenizer.token_id("</s>") == 2
    assert tokenizer.token_id("nothing such") is None


@pytest.mark.parametrize("name", ["bart_g2p_us", "gpt2_nano_sort"])
def test_other_trained_checkpoints(shared: Path, name: str) -> None:
    agrees(shared / "checkpoints" / name)


@pytest.mark.parametrize("name", MAKERS)
def test_kinds_of_tokenizer_json(tmp_path: Path, made: dict[str, str], name: str) -> None:
    agrees(directory_of(tmp_path, made[name], {"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_add_bos_token_is_not_heeded_beside_a_tokenizer_json(tmp_path: Path, made: dict[str, str], add_bos_token: bool) -> None:
    config = {**LLAMA_CONFIG, "add_bos_token": add_bos_token, "add_eos_token": True}
    assert agrees(directory_of(tmp_path, made["llama_like"], config)).encode("a")[0] == 1
    without = json.loads(made["llama_like"]) | {"post_processor": None}
    assert agrees(directory_of(tmp_path, json.dumps(without), config)).encode("a")[0] != 1


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("prefix", [None, False])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_llama_tokenizer(tmp_path: Path, made: dict[str, str], legacy: bool | None, prefix: bool | None, model_type: str) -> None:
    config = {**LLAMA_CONFIG, "tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    config |= {} if prefix is None else {"add_prefix_space": prefix}
    tokenizer = agrees(directory_of(tmp_path / "with_config", made["llama_like"], config, config={"model_type": model_type}))
    plain = agrees(directory_of(tmp_path / "plain", made["llama_like"], LLAMA_CONFIG))
    assert (tokenizer.encode("a</s>b") == plain.encode("a</s>b")) == (model_type == "mistral" or (legacy is True and prefix is None))


def test_llama_tokenizer_of_bytes(tmp_path: Path, made: dict[str, str]) -> None:
    config = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|end|>"}
    agrees(directory_of(tmp_path, made["bpe_with_bytes"], config, config={"model_type": "llama"}))


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
        {
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True, "rstrip": True},
            "extra_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        {"eos_token": "time", "pad_token": "upon"},
        {"image_token": "girl", "extra_special_tokens": {"audio_token": "little"}, "add_prefix_token": False},
        {"split_special_tokens": True, "eos_token": "<|end|>"},
        {
            "added_tokens_decoder": {
                "401": {"content": "<|im_end|>", "special": False, "normalized": True, "lstrip": True},
                "400": {"content": "<|im_start|>", "special": True, "rstrip": True},
                "402": {"content": "girl", "special": False, "single_word": True},
            },
            "bos_token": "<|im_end|>",
            "eos_token": "<|end|>",
        },
        {"added_tokens_decoder": {"0": {"content": "<|end|>", "special": False, "normalized": False}}},
    ],
)
def test_special_and_added_tokens(tmp_path: Path, made: dict[str, str], config: dict[str, Any]) -> None:
    directory = directory_of(tmp_path, made["bpe_with_bytes"], {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    tokenizer = agrees(directory, [*TEXTS, "x <|im_start|> y <|im_end|> z girl girls <|end|>"])
    special = reference(directory).all_special_ids
    assert tokenizer.decode([*special, *tokenizer.encode("dog")]) == "dog"


def test_named_tokens_keep_the_flags_of_the_file(tmp_path: Path, made: dict[str, str]) -> None:
    flagged = json.loads(made["bpe_with_bytes"])
    flagged["added_tokens"][0] |= {"lstrip": True, "rstrip": True}
    directory = directory_of(tmp_path, json.dumps(flagged), {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    assert agrees(directory, [*TEXTS, "x <|end|> y"]).decode(Tokenizer.load(directory).encode("x <|end|> y")) == "xy"


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_in_normalized_text(tmp_path: Path, made: dict[str, str], normalized: bool) -> None:
    config = {**LLAMA_CONFIG, "added_tokens_decoder": {"300": {"content": "n a", "special": False, "normalized": normalized}}}
    tokenizer = agrees(directory_of(tmp_path, made["llama_like"], config), [*TEXTS, "n a", "upon a time", "ti n▁a"])
    assert (tokenizer.token_id("n a") in tokenizer.encode("ti n▁a")) == normalized


def test_special_tokens_map_serves_where_added_tokens_are_not_listed(tmp_path: Path, made: dict[str, str]) -> None:
    extra = {"eos_token": {"content": "<|im_end|>", "lstrip": True}, "bos_token": "<|end|>"}
    files = {"special_tokens_map": extra, "added_tokens": {"<|im_end|>": 401, "<|im_start|>": 400}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "time"}
    tokenizer = agrees(directory_of(tmp_path / "1", made["bpe_with_bytes"], config, **files))
    assert tokenizer.eos_ids == (tokenizer.token_id("<|im_end|>"),)
    tokenizer = agrees(directory_of(tmp_path / "2", made["bpe_with_bytes"], {**config, "added_tokens_decoder": {}}, **files))
    assert tokenizer.eos_ids == (tokenizer.token_id("time"),)


def test_truncation_and_padding_of_the_file_are_not_heeded(tmp_path: Path, made: dict[str, str]) -> None:
    limited = tokenizers.Tokenizer.from_str(made["llama_like"])
    limited.enable_truncation(3)
    limited.enable_padding(length=50, pad_token="<unk>")
    tokenizer = agrees(directory_of(tmp_path, limited.to_str(), LLAMA_CONFIG))
    assert len(tokenizer.encode("Once upon")) == 9


# ------------------------------------------------------------------------------------------------------------------- sentencepiece


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        ({"add_bos_token": True}, TEXTS),
        ({"add_bos_token": True, "add_eos_token": True, "legacy": False}, TEXTS),
        ({"legacy": True}, TEXTS),
        ({"add_bos_token": False}, TEXTS),
        ({}, TEXTS),
    ],
)
def test_sentencepiece_alone(shared: Path, tmp_path: Path, config: dict[str, Any], texts: list[str]) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config}
    original = shared / "checkpoints" / "stories260K"
    directory = copy_of(original, tmp_path / "model", ["tokenizer.model", "config.json"], config)
    # SentencePiece normalizes spaces as this model was trained to have them; what transformers makes of the same file does not.
    tokenizer = agrees(
        directory,
        [
            text
            for text in texts
            if " ".join(text.split(" ")) == text.strip() and "  " not in text and "> " not in text and " <" not in text
        ],
    )
    assert (tokenizer.kind, tokenizer.vocab_size) == ("sentencepiece", 512)
    assert tokenizer.to_bytes() == (original / "tokenizer.model").read_bytes()
    assert (tokenizer.encode("Once")[0] == 1) == config.get("add_bos_token", False)
    assert (tokenizer.encode("Once")[-1] == 2) == config.get("add_eos_token", False)
    json_ids = Tokenizer.load(original).encode
    for text in ("Once upon a time", "  two", "trailing ", "a  b   c", "é 😀 中文"):
        assert tokenizer.encode(text, add_special_tokens=False) == json_ids(text, add_special_tokens=False)


def test_sentencepiece_without_any_settings(shared: Path, tmp_path: Path) -> None:
    directory = copy_of(shared / "checkpoints" / "stories260K", tmp_path / "model", ["tokenizer.model"])
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.source == directory / "tokenizer.model"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 0, 407, 2, 9999, -1]) == "Once upon"
    assert tokenizer.token_id("<s>") == 1
    assert tokenizer.token_id("nothing such") is None


def test_sentencepiece_with_added_tokens(shared: Path) -> None:
    data = (shared / "checkpoints" / "stories260K" / "tokenizer.model").read_bytes()
    added = TokenizerSettings(
        special_tokens={"eos_token": AddedToken("<|im_end|>")},
        added_tokens=(AddedToken("<|im", 510), AddedToken("<|im_start|>", 512), AddedToken("<|im_end|>", 513), AddedToken("<|im_", 514)),
        add_eos=True,
        eos_ids=(2,),
    )
    tokenizer = Tokenizer.from_bytes("sentencepiece", data, settings=added)
    assert tokenizer.encode("<|im_start|>Once<|im_end|>") == [512, 441, 416, 331, 513, 513]
    assert (tokenizer.eos_ids, tokenizer.vocab_size) == ((2, 513), 515)
    assert tokenizer.decode([512, 403, 513]) == "Once"
    whole = TokenizerSettings(**{**vars(added), "split_special_tokens": True})
    assert 512 not in Tokenizer.from_bytes("sentencepiece", data, settings=whole).encode("<|im_start|>Once")


def test_sentencepiece_named_tokens(shared: Path) -> None:
    data = (shared / "checkpoints" / "stories260K" / "tokenizer.model").read_bytes()
    assert Tokenizer.from_bytes("sentencepiece", data, settings=TokenizerSettings(add_bos=True)).encode("Once") == [1, 403]
    assert Tokenizer.from_bytes("sentencepiece", data, settings=TokenizerSettings(add_eos=True)).encode("Once") == [403, 2]
    named = TokenizerSettings(
        special_tokens={"bos_token": AddedToken("▁time"), "eos_token": AddedToken("nothing such")}, add_bos=True, add_eos=True
    )
    tokenizer = Tokenizer.from_bytes("sentencepiece", data, settings=named)
    time = tokenizer.token_id("▁time")
    assert time is not None and time > 2
    assert tokenizer.encode("Once▁time") == [time, 403, time]
    assert tokenizer.decode([403, time]) == "Once"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (time, ())


@pytest.fixture(scope="session")
def exact_spaces() -> bytes:
    """A SentencePiece model like Llama 2's, which leaves the spaces of a text as they are."""
    import sentencepiece

    model = io.BytesIO()
    options = {
        "vocab_size": 320,
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, minloglevel=2, **options)
    return model.getvalue()


def test_sentencepiece_spaces(exact_spaces: bytes) -> None:
    plain = Tokenizer.from_bytes("sentencepiece", exact_spaces)
    for text in ("a dog", "  a  dog ", "a\ndog", "\n", " ", ""):
        assert plain.decode(plain.encode(text)) == text
    assert plain.decode(plain.encode("a</s> a")) == "a a"
    bare = Tokenizer.from_bytes("sentencepiece", exact_spaces, settings=TokenizerSettings(prefix="never"))
    assert bare.encode("a") == plain.encode("a")[1:] or len(bare.encode("a")) == 1
    assert bare.decode(plain.encode("a")) == " a"
    always = Tokenizer.from_bytes("sentencepiece", exact_spaces, settings=TokenizerSettings(prefix="always"))
    assert always.encode("a</s>a") == [*plain.encode("a"), 2, *plain.encode("a")]
    assert plain.encode("a</s>a") == [*plain.encode("a"), 2, *bare.encode("a")]


# ------------------------------------------------------------------------------------------------------------------------- streams


@pytest.fixture(scope="session")
def loaded(made: dict[str, str], shared: Path) -> dict[str, Tokenizer]:
    every = {name: Tokenizer.from_bytes("hf", data.encode()) for name, data in made.items()}
    every["sentencepiece"] = Tokenizer.from_bytes(
        "sentencepiece", (shared / "checkpoints" / "stories260K" / "tokenizer.model").read_bytes()
    )
    return every


KINDS = [*MAKERS, "sentencepiece"]


def test_characters_arrive_whole(loaded: dict[str, Tokenizer]) -> None:
    for name in ("bpe_with_bytes", "llama_like", "sentencepiece"):
        tokenizer, text = loaded[name], "a é 😀 中 ậ b"
        arrived = pieces(tokenizer, tokenizer.encode(text))
        assert "".join(arrived) == text
        assert not any("\ufffd" in piece for piece in arrived), name
        assert sum(piece != "" for piece in arrived) > 5


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_pieces_join_to_the_whole(loaded: dict[str, Tokenizer], name: str, data: st.DataObject) -> None:
    tokenizer = loaded[name]
    size = tokenizer.vocab_size
    ids = data.draw(st.lists(st.integers(0, size + 1), max_size=200) | st.text(max_size=80).map(tokenizer.encode))
    arrived = pieces(tokenizer, ids)
    assert "".join(arrived) == tokenizer.decode(ids)
    cut = data.draw(st.integers(0, len(ids)))
    if name != "word_piece" or cut:
        before = tokenizer.decode(ids[:cut])
        if tokenizer.decode(ids).startswith(before) and not before.endswith("\ufffd"):
            assert before + "".join(pieces(tokenizer, ids[cut:], ids[:cut])) == tokenizer.decode(ids)


def test_pieces_come_at_once(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["llama_like"]
    assert pieces(tokenizer, tokenizer.encode("on a ti")) == ["", "", "on", " a", " ", "ti", ""]
    euro = [3 + byte for byte in "€".encode()]
    assert pieces(tokenizer, [*euro, *euro, 1, tokenizer.encode("on")[2]]) == ["", "", "", "", "", "", "", "€€on", ""]
    assert pieces(tokenizer, [*euro[:2]]) == ["", "", "\ufffd\ufffd"]
    by_bytes = loaded["bpe_with_bytes"]
    ids = by_bytes.encode("€!")
    assert pieces(by_bytes, ids) == ["", "", "€", "!", ""]


def test_a_context_keeps_the_leading_space(loaded: dict[str, Tokenizer]) -> None:
    for name in ("llama_like", "sentencepiece"):
        tokenizer = loaded[name]
        prompt = tokenizer.encode("Once upon")
        rest = tokenizer.encode("Once upon a time")[len(prompt) :]
        assert "".join(pieces(tokenizer, rest)) == "a time"
        assert "".join(pieces(tokenizer, rest, prompt)) == " a time"
        assert "".join(pieces(tokenizer, rest, prompt * 100)) == " a time"


@pytest.mark.parametrize("name", KINDS)
def test_a_context_may_end_within_a_character(loaded: dict[str, Tokenizer], name: str) -> None:
    tokenizer, text = loaded[name], "a € b😀c " * 40 + "a"
    ids = tokenizer.encode(text)
    for cut in range(len(ids)):
        before = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert before + "".join(pieces(tokenizer, ids[cut:], ids[:cut])) == tokenizer.decode(ids), cut


def test_long_streams_do_not_decode_everything_again(loaded: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loaded["llama_like"]
    ids = tokenizer.encode("Once é a time 😀 " * 100)
    longest = 0
    decode = tokenizer._backend.decode

    def counted(some: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(some))
        return decode(some)

    monkeypatch.setattr(tokenizer._backend, "decode", counted)
    arrived = "".join(pieces(tokenizer, ids))
    assert longest < 100 < len(ids)
    assert arrived == decode(ids)
    stream, longest = tokenizer.stream_decoder(ids), 0
    assert stream.push(tokenizer.encode("on")[2]) == "on"
    assert longest < 100


# ------------------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("files", "bos", "eos"),
    [
        ({}, None, ()),
        ({"config": {"eos_token_id": 7, "bos_token_id": 5}}, 5, (7,)),
        ({"config": {"eos_token_id": [7, 8]}}, None, (7, 8)),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [9, 8]}}, None, (9, 8)),
        ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": None}}, None, (7,)),
        ({"config": {"text_config": {"eos_token_id": 7, "bos_token_id": 0}}}, 0, (7,)),
        ({"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}, "config": {"eos_token_id": 0, "bos_token_id": 0}}, 1, (0, 2)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}, "generation_config": {"eos_token_id": [3, 2]}}, None, (3, 2)),
        ({"tokenizer_config": {"eos_token": None}}, None, ()),
    ],
)
def test_ends_of_text(tmp_path: Path, made: dict[str, str], files: dict[str, Any], bos: int | None, eos: tuple[int, ...]) -> None:
    tokenizer = Tokenizer.load(directory_of(tmp_path, made["llama_like"], **files))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)


def test_a_file_is_as_good_as_its_directory(tmp_path: Path, made: dict[str, str]) -> None:
    directory = directory_of(tmp_path, made["llama_like"], LLAMA_CONFIG)
    (directory / "tokenizer.json").rename(directory / "other.json")
    tokenizer = Tokenizer.load(str(directory / "other.json"))
    assert (tokenizer.source, tokenizer.eos_ids) == (directory / "other.json", (2,))


def test_from_bytes_with_settings(made: dict[str, str]) -> None:
    chosen = TokenizerSettings(
        special_tokens={"eos_token": AddedToken("on")}, eos_ids=(2,), bos_id=1, chat_template="{{ messages[0].content }}"
    )
    tokenizer = Tokenizer.from_bytes("hf", made["llama_like"].encode(), settings=chosen)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2, tokenizer.token_id("on")))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}]) == tokenizer.encode("a", add_special_tokens=False)


def test_no_path_in_a_tokenizer_file_is_followed(tmp_path: Path, made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(made["bpe_with_bytes"])
    pointers = dict.fromkeys(
        ("tokenizer_file", "vocab_file", "merges_file", "name_or_path", "chat_template_file", "special_tokens_map_file"), str(secret)
    )
    config = {**LLAMA_CONFIG, **pointers, "auto_map": {"AutoTokenizer": ["../secret.Evil", None]}, "tokenizer_class": str(secret)}
    directory = directory_of(tmp_path / "model", made["llama_like"], config, config=pointers, generation_config=pointers)
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **options: opened.append(self) or original(self, *args, **options))
    tokenizer = Tokenizer.load(directory)
    assert {path.parent for path in opened} == {directory}
    assert tokenizer.encode("Once") == Tokenizer.from_bytes("hf", made["llama_like"].encode()).encode("Once")
    template = Tokenizer.from_bytes(
        "hf", made["llama_like"].encode(), settings=TokenizerSettings(chat_template=f"{{% include '{secret}' %}}")
    )
    with pytest.raises(TokenizerError, match="the chat template refuses these messages: TypeError: no loader"):
        template.render_chat([{"role": "user", "content": "x"}])


# -------------------------------------------------------------------------------------------------------------------------- errors


def refusal(path: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(path)
    return str(caught.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nope").startswith(f"{tmp_path / 'nope'}: does not exist; give a directory with a tokenizer.json")
    assert (
        refusal(tmp_path)
        == f"{tmp_path}: has no tokenizer: neither tokenizer.json nor tokenizer.model; download one of them next to config.json"
    )
    (tmp_path / "vocab.json").touch()
    (tmp_path / "merges.txt").touch()
    assert (
        "; vocab.json, merges.txt is of a kind that FlatLM does not read: where transformers can load it, write a tokenizer.json"
        in refusal(tmp_path)
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the tokenizers library cannot read it"),
        (b"{}", "the tokenizers library cannot read it"),
        (b"\xff", "the tokenizers library cannot read it ('utf-8' codec can't decode"),
        (
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
            "cannot read it (Token `a` out of vocabulary",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, not the tokenizer itself; run `git lfs pull`"),
    ],
)
def test_bad_tokenizer_json(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert complaint in refusal(tmp_path)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_damage_to_a_tokenizer_json_is_an_error_or_harmless(made: dict[str, str], data: st.DataObject) -> None:
    content = bytearray(made[data.draw(st.sampled_from(list(MAKERS)))].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'{}[]",:0 \xff') | st.integers(32, 126))
    try:
        tokenizer = Tokenizer.from_bytes("hf", bytes(content))
        tokenizer.decode(tokenizer.encode("Once upon a time 😀"))
    except TokenizerError:
        pass


def test_a_tokenizer_json_that_fails_in_use(made: dict[str, str]) -> None:
    broken = json.loads(made["llama_like"])
    broken["post_processor"]["special_tokens"] = {}  # which makes the library panic
    tokenizer = Tokenizer.from_bytes("hf", json.dumps(broken).encode(), source=Path("some.json"))
    with pytest.raises(
        TokenizerError, match=r"some.json: the tokenizers library cannot encode this text with it \(no entry found for key\)"
    ):
        tokenizer.encode("Once")
    unknown = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="?")).to_str().encode()
    with pytest.raises(TokenizerError, match=r"cannot encode this text with it \(WordLevel error: Missing \[UNK\]"):
        Tokenizer.from_bytes("hf", unknown).encode("b")


@pytest.mark.parametrize("content", [b"", b"junk", b"IQ== 0\nIg== 1\n"])
def test_bad_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert "tokenizer.model: is not a SentencePiece model (" in refusal(tmp_path)
    assert "write a tokenizer.json next to it" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
        ("config.json", "1", "is not a JSON object"),
        ("generation_config.json", "\xff", "is not JSON"),
        ("special_tokens_map.json", "null", "is not a JSON object"),
        ("added_tokens.json", '{"x": "y"}', "a token's id must be a number, not 'y'"),
        ("tokenizer_config.json", '{"eos_token": 2}', "eos_token must be text, or an object with its text under 'content', not 2"),
        ("tokenizer_config.json", '{"eos_token": {"text": "x"}}', "eos_token must be text"),
        ("tokenizer_config.json", '{"additional_special_tokens": "x"}', "additional_special_tokens must be a list, not 'x'"),
        ("tokenizer_config.json", '{"additional_special_tokens": [1]}', "additional_special_tokens must be text"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "added_tokens_decoder must be an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "x", "y": "z"}}', "a token's id must be a number, not 'y'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"-1": "x"}}', "a token's id must be a number, not '-1'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"99999999999999": "x"}}', "a token's id must be a number"),
        ("tokenizer_config.json", '{"chat_template": 1}', "chat_template must be text, or a list of named texts"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": {}}]}', "chat_template must be text"),
        ("chat_template.jinja", "\xff", "is not UTF-8 text"),
        (
            "config.json",
            '{"eos_token_id": "2"}',
            "eos_token_id in generation_config.json or config.json must be a number or numbers, not '2'",
        ),
        ("config.json", '{"eos_token_id": [2, true]}', "eos_token_id in generation_config.json or config.json must be"),
        ("config.json", '{"bos_token_id": []}', "bos_token_id in generation_config.json or config.json must be"),
    ],
)
def test_bad_settings(tmp_path: Path, made: dict[str, str], name: str, content: str, complaint: str) -> None:
    directory = directory_of(tmp_path, made["llama_like"])
    (directory / name).write_text(content, encoding="latin-1")
    assert refusal(directory).startswith(str(directory))
    assert complaint in refusal(directory)
    assert len(refusal(directory)) < 500


def test_files_are_bounded_and_regular(tmp_path: Path, made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = directory_of(tmp_path, made["llama_like"])
    (directory / "config.json").mkdir()
    assert refusal(directory) == f"{directory / 'config.json'}: is not a file"
    (directory / "config.json").rmdir()
    monkeypatch.setattr("flatlm.utilities.tokenizer_settings.MAX_FILE", 100)
    assert refusal(directory) == f"{directory / 'tokenizer.json'}: is larger than 100 bytes, too large for a tokenizer's file"


def test_text_that_is_not_unicode(made: dict[str, str]) -> None:
    tokenizer = Tokenizer.from_bytes("hf", made["llama_like"].encode())
    with pytest.raises(TokenizerError, match=r"the text is not valid Unicode: surrogates not allowed at character 3; pass UTF-8"):
        tokenizer.encode("abc\udcff")


def test_unknown_kind(made: dict[str, str]) -> None:
    with pytest.raises(TokenizerError, match=r"'tiktoken' is no kind of tokenizer; there are hf, sentencepiece"):
        Tokenizer.from_bytes("tiktoken", b"")  # type: ignore[arg-type]


def test_ids_beyond_the_vocabulary_decode_to_nothing(made: dict[str, str]) -> None:
    tokenizer = Tokenizer.from_bytes("hf", made["llama_like"].encode())
    ids = tokenizer.encode("on")
    for odd in (-1, tokenizer.vocab_size, 2**31, 2**40):
        assert tokenizer.decode([*ids, odd]) == "on"
        assert "".join(pieces(tokenizer, [*ids, odd])) == "on"


def test_default_settings_are_those_of_an_empty_directory(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == TokenizerSettings()


def test_importing_loads_no_heavy_library() -> None:
    heavy = "torch tokenizers sentencepiece jinja2 numpy"
    code = f"import sys, flatlm.utilities.tokenizer; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
