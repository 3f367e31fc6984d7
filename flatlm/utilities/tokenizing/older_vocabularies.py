"""Vocabularies in the files of older checkpoints, which say nothing of how they are used: that follows from their names and settings.

`vocab.txt` is WordPiece (BERT, RoBERTa-wwm, Chinese GPT-2), `vocab.json` with `merges.txt` byte-level BPE (GPT-2, RoBERTa, BART): of both a
`tokenizer.json` is made, as transformers 5 makes one of the same files. `cog-pretrain.model` (GLM), `chinese_vocab.model` and
`spiece.model` (CPM, and T5: t5.py) are SentencePiece models. GLM's own tokens, which its first tokenizers added in code, follow
each vocabulary.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.settings import AddedToken, TokenizerSettings, read_bytes, read_json, read_settings
from flatlm.utilities.tokenizing.t5 import is_t5, t5_settings

Kind = Literal["hf", "sentencepiece"]
START_OF_PIECE, END_OF_PIECE = "<|startofpiece|>", "<|endofpiece|>"
MASK_TOKENS = ("[MASK]", "[sMASK]", "[gMASK]")
"""A blank of words, of a sentence, and of all that follows."""

_WORD_PIECE = re.compile(r"(GLM)?(Bert|Electra|DistilBert|MobileBert|ConvBert|SqueezeBert|Roberta)?Tokenizer(Fast)?")
_BYTE_LEVEL = re.compile(r"(GLM)?(GPT2|Roberta|Bart|PreTrained)?Tokenizer(Fast)?")
_AROUND_TEXT = re.compile(r"(Roberta|Bart)Tokenizer(Fast)?")

_BLANKS = {
    "vocab.txt": (START_OF_PIECE, END_OF_PIECE, "[gMASK]", "[sMASK]"),
    "vocab.json": (START_OF_PIECE, END_OF_PIECE, "[CLS]", "[MASK]", "[SEP]", "[UNK]", "[gMASK]", "[sMASK]"),
    "cog-pretrain.model": ("<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNK]", None, START_OF_PIECE, END_OF_PIECE, "[sMASK]", "[gMASK]"),
}
"""GLM's tokens behind each vocabulary, by their ids from its end on (THUDM/GLM's and FlagAI's tokenizers; None: an id that nobody has)."""


@dataclass(frozen=True)
class Vocabulary:
    """What `Tokenizer.from_bytes` takes."""

    kind: Kind
    data: bytes
    settings: TokenizerSettings
    source: Path


def find_vocabulary(path: Path) -> Vocabulary | None:
    """The vocabulary in a directory without tokenizer.json and tokenizer.model, or in such a file; None where it is none that is read.

    Raises TokenizerError for one of a tokenizer class that uses such a file otherwise.
    """
    for name, read in _READERS.items():
        file = path / name if path.is_dir() else path
        if file.name == name and file.is_file():
            return read(file, read_settings(file.parent), read_json(file.with_name("tokenizer_config.json")))
    return None


def _word_piece(path: Path, settings: TokenizerSettings, config: Mapping[str, Any]) -> Vocabulary:
    """Each line a token. `do_lower_case` and `tokenize_chinese_chars` are true where nobody says otherwise."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    _require_class(path, config, _WORD_PIECE)
    vocabulary = {line.rstrip("\n"): number for number, line in enumerate(io.StringIO(_text(path), newline=None))}
    tokens = {role: settings.special_tokens.get(role, AddedToken(f"[{role[:-6].upper()}]")) for role in _BERT_TOKENS}
    ends = {"eos_token": tokens["pad_token"]} if _fills_blanks(path) else {}  # GLM's end of text, which its tokenizers name in code
    settings = replace(settings, special_tokens={**tokens, **ends, **settings.special_tokens})
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=tokens["unk_token"].content))
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_boolean(path, config, "tokenize_chinese_chars", True),
        strip_accents=_boolean(path, config, "strip_accents", None),
        lowercase=_boolean(path, config, "do_lower_case", True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    settings = _with_blanks(path, settings, len(vocabulary), vocabulary)
    before, after = tokens["cls_token"].content, tokens["sep_token"].content
    return Vocabulary("hf", _around(made, settings, *_text_ends(path, before, after)), settings, path)


_BERT_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Those that a WordPiece vocabulary has even where nothing names them, in the order in which a missing one is added."""


def _byte_level(path: Path, settings: TokenizerSettings, config: Mapping[str, Any]) -> Vocabulary | None:
    """A JSON object of tokens to ids, and merges.txt beside it, a pair in each line after a comment; without it, something else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges_path = path.with_name("merges.txt")
    if not merges_path.exists():
        return None
    _require_class(path, config, _BYTE_LEVEL)
    lines = [line for line in _text(merges_path).split("\n") if line and not line.startswith("#version")]
    merges = [(line.split(" ")[0], line.split(" ")[1]) for line in lines if line.count(" ") == 1]
    if len(merges) != len(lines):
        raise TokenizerError(f"{merges_path}: has lines that are not two pieces with a space between; download it again")
    vocabulary = read_json(path)
    unknown = next((piece for a, b in merges for piece in (a, b, a + b) if piece not in vocabulary), None)
    if unknown is not None:  # the library would panic
        raise TokenizerError(f"{path}: has no piece {unknown!r}, which merges.txt beside it has; download both again")
    try:
        made = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    except Exception as error:
        raise TokenizerError(f"{path}: does not go with merges.txt beside it ({error}); download both again") from error
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_boolean(path, config, "add_prefix_space", False))
    made.decoder = decoders.ByteLevel()
    around = _AROUND_TEXT.fullmatch(_tokenizer_class(path, config)) is not None
    defaults = _ROBERTA_TOKENS if around else dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    named = {role: AddedToken(content) for role, content in defaults.items() if content in vocabulary}
    settings = _with_blanks(path, replace(settings, special_tokens={**named, **settings.special_tokens}), len(vocabulary), vocabulary)
    if around:
        missing = [f"{role} {defaults[role]!r}" for role in ("cls_token", "sep_token") if role not in settings.special_tokens]
        if missing:
            raise TokenizerError(f"{path}: has no {' and no '.join(missing)}, which go around a text; download it again")
        before, after = (settings.special_tokens[role].content for role in ("cls_token", "sep_token"))
        return Vocabulary("hf", _around(made, settings, before, after, parted=True), settings, path)
    return Vocabulary("hf", _around(made, settings, *(("[CLS]", "<|endoftext|>") if _fills_blanks(path) else (None, None))), settings, path)


_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def _glm_sentencepiece(path: Path, settings: TokenizerSettings, config: Mapping[str, Any]) -> Vocabulary:
    """Each stretch between special tokens is a text of its own for the model; [CLS] goes before a text, <|endoftext|> after it."""
    data = read_bytes(path)
    settings = _with_blanks(path, settings, _pieces(path, data), {})
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]", "eos_token": "<|endoftext|>"}
    tokens = {role: settings.special_tokens.get(role, AddedToken(content)) for role, content in named.items()}
    before, after = (tokens["cls_token"].content,), (tokens["eos_token"].content,)
    settings = replace(settings, special_tokens={**settings.special_tokens, **tokens}, prefix="always", before=before, after=after)
    return Vocabulary("sentencepiece", data, settings, path)


def _cpm(path: Path, settings: TokenizerSettings, config: Mapping[str, Any]) -> Vocabulary | None:
    """CPM's model has pieces for space and newline; another model of that name is of a kind that is not read here."""
    import sentencepiece

    data = read_bytes(path)
    _pieces(path, data)
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    if any(model.piece_to_id(mark) == model.unk_id() for mark in ("\u2582", "\u2583")):
        return None
    ends = {"eos_token": AddedToken("<eod>")} if model.piece_to_id("<eod>") != model.unk_id() else {}
    return Vocabulary("sentencepiece", data, replace(settings, cpm=True, special_tokens={**ends, **settings.special_tokens}), path)


def _spiece(path: Path, settings: TokenizerSettings, config: Mapping[str, Any]) -> Vocabulary | None:
    """T5's, or CPM's."""
    if not is_t5(path, config):
        return _cpm(path, settings, config)
    data = read_bytes(path)
    return Vocabulary("sentencepiece", data, t5_settings(path, settings, config, _pieces(path, data)), path)


_READERS: Mapping[str, Callable[[Path, TokenizerSettings, Mapping[str, Any]], Vocabulary | None]] = {
    "vocab.txt": _word_piece,
    "cog-pretrain.model": _glm_sentencepiece,
    "chinese_vocab.model": _cpm,
    "spiece.model": _spiece,
    "vocab.json": _byte_level,
}
"""CPM's model goes before its vocab.json, which only lists the pieces again."""


def _with_blanks(path: Path, settings: TokenizerSettings, end: int, vocabulary: Mapping[str, int]) -> TokenizerSettings:
    """With GLM's tokens, where the checkpoint is such a model and nothing lists them. `end`: the first id behind the vocabulary."""
    listed = {token.content for token in settings.added_tokens} | set(vocabulary)
    if not _fills_blanks(path) or START_OF_PIECE in listed:
        return settings
    tokens = enumerate(_BLANKS.get(path.name, ()), end)
    added = [AddedToken(name, number, lstrip=name in MASK_TOKENS) for number, name in tokens if name is not None and name not in listed]
    return replace(settings, added_tokens=(*settings.added_tokens, *added), extra_tokens=(*settings.extra_tokens, *added))


def _fills_blanks(path: Path) -> bool:
    """Is the model beside it a GLM that fills blanks?"""
    return path.name == "cog-pretrain.model" or read_json(path.with_name("config.json")).get("block_position_encoding") is True


def _text_ends(path: Path, before: str, after: str) -> tuple[str | None, str | None]:
    """What goes around a text: nothing in a model that writes on, since an end would be written behind every prompt."""
    config = read_json(path.with_name("config.json"))
    writes_on = config.get("model_type") == "gpt2" or "n_embd" in config
    return (None, None) if writes_on else (before, after)


def _around(made: Any, settings: TokenizerSettings, before: str | None, after: str | None, *, parted: bool = False) -> bytes:
    """The tokenizer's JSON, with the special tokens that settings name and, unless they are None, a token before a text and one after.

    `parted`: two texts have two such tokens between them and the same type, as RoBERTa's and BART's; else types 0 and 1, as BERT's.
    """
    from tokenizers import AddedToken as RustToken
    from tokenizers import processors

    tokens: Sequence[AddedToken] = (*settings.added_tokens, *settings.special_tokens.values())
    made.add_special_tokens([RustToken(token.content, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False) for token in tokens])
    if before is not None and after is not None:
        ids = [(name, made.token_to_id(name)) for name in dict.fromkeys((before, after))]
        single = f"{before}:0 $A:0 {after}:0"
        pair = f"{single} {after}:0 $B:0 {after}:0" if parted else f"{single} $B:1 {after}:1"
        made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return str(made.to_str()).encode()


def _pieces(path: Path, data: bytes) -> int:
    """How many pieces a SentencePiece model has. Raises TokenizerError for another file."""
    import sentencepiece

    try:
        return int(sentencepiece.SentencePieceProcessor(model_proto=data).get_piece_size())
    except RuntimeError as error:
        raise TokenizerError(f"{path}: is not a SentencePiece model ({error}); download it again") from error


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: is not UTF-8 text ({error}); download it again") from error


def _tokenizer_class(path: Path, config: Mapping[str, Any]) -> str:
    """As the checkpoint declares it; by its kind of model, where it does not."""
    model = read_json(path.with_name("config.json"))
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    by_model = {"roberta": "RobertaTokenizer", "bart": "BartTokenizer"}
    return str(declared or by_model.get(str(model.get("model_type")), "Tokenizer"))


def _boolean(path: Path, config: Mapping[str, Any], key: str, default: bool | None) -> Any:
    """A setting in tokenizer_config.json; the default where it is absent or null. Raises TokenizerError."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"{path.with_name('tokenizer_config.json')}: {key} = {value!r} must be true or false")
    return default if value is None else value


def _require_class(path: Path, config: Mapping[str, Any], known: re.Pattern[str]) -> None:
    declared = _tokenizer_class(path, config)
    if not known.fullmatch(declared):
        raise TokenizerError(
            f"{path}: belongs to a {declared}, which FlatLM does not read; where transformers can load it, write a tokenizer.json with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
