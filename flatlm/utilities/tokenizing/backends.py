"""The two kinds of vocabulary, behind one face: a `tokenizer.json` of the tokenizers library, and a SentencePiece model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.conversion import model_from_bundle
from flatlm.utilities.tokenizing.encoded_text import EncodedText
from flatlm.utilities.tokenizing.settings import AddedToken, TokenizerSettings
from flatlm.utilities.tokenizing.vocabulary import TokenReader, Vocabulary

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CONVERT = (
    "where transformers can load it, write a tokenizer.json next to it: "
    "python -c \"import transformers; transformers.AutoTokenizer.from_pretrained('DIR').save_pretrained('DIR')\""
)
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Appended to a serialized ModelProto, this sets its normalizer_spec.add_dummy_prefix to false: Protocol Buffers merge what is repeated."""


class Backend(Protocol):
    """A vocabulary in use."""

    own_bos: int | None
    """The id that the vocabulary's file itself says begins a text; None where it says nothing of the kind."""
    own_eos: int | None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_text(self, text: str, pair: str | None) -> EncodedText:
        """With special tokens, and with the places of all tokens."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Without special tokens, or with them; an id that the vocabulary lacks, as a padded model may produce, decodes to nothing."""

    def token_id(self, token: str) -> int | None: ...

    def is_hidden(self, token_id: int) -> bool:
        """Whether decode leaves the token out."""

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is one byte of text, to be joined with its neighbours."""

    def certain_text(self, token_id: int) -> str | None:
        """What decode adds to a text for this token, if the text has something already; None where that depends on other tokens."""

    def vocab_size(self) -> int:
        """The largest id, plus one."""

    def vocabulary(self) -> Vocabulary:
        """What each token stands for."""

    def to_bytes(self) -> bytes:
        """The vocabulary as a file of its kind, which alone gives the same ids."""


class HfBackend:
    """`tokenizer.json`, with what the settings add to it, in the order in which transformers 5 does."""

    own_bos: int | None = None
    own_eos: int | None = None

    def __init__(self, data: bytes, settings: TokenizerSettings, source: Path) -> None:
        import tokenizers

        self._source = source
        with _library_errors(source, "read it"):
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if settings.llama_rules and b'"ByteLevel"' not in data and type(self._tokenizer.model).__name__ == "BPE":
            self._apply_llama_rules(settings.prefix)
        self._add_tokens(settings)
        self._tokenizer.encode_special_tokens = settings.split_special_tokens
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._certain: dict[int, str | None] = {}

    def _apply_llama_rules(self, prefix: str) -> None:
        from tokenizers import decoders, pre_tokenizers

        self._tokenizer.normalizer = None
        self._tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prefix, split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if prefix != "never":
            steps.append(decoders.Strip(content=" ", left=1, right=0))
        self._tokenizer.decoder = decoders.Sequence(steps)

    def _add_tokens(self, settings: TokenizerSettings) -> None:
        known = {token.content: token for token in self._tokenizer.get_added_tokens_decoder().values()}
        listed = {token.content: _rust_token(token) for token in settings.added_tokens}
        self._tokenizer.add_tokens(list(listed.values()))
        special = [*settings.special_tokens.values(), *settings.extra_tokens]
        flags = listed or known
        self._tokenizer.add_special_tokens([flags.get(token.content, _rust_token(token)) for token in special])

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        with _library_errors(self._source, "encode this text with it"):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_text(self, text: str, pair: str | None) -> EncodedText:
        with _library_errors(self._source, "encode this text with it"):
            found = self._tokenizer.encode(text, pair)
            offsets = tuple((int(start), int(end)) for start, end in found.offsets)
            return EncodedText(tuple(found.ids), tuple(found.type_ids), offsets, tuple(found.sequence_ids))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        with _library_errors(self._source, "decode with it"):
            return str(self._tokenizer.decode([i for i in ids if 0 <= i < 2**32], skip_special_tokens=skip_special_tokens))

    def token_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def is_hidden(self, token_id: int) -> bool:
        if token_id in self._added:
            return bool(self._added[token_id].special)
        return not 0 <= token_id < 2**32 or self._tokenizer.id_to_token(token_id) is None

    def is_byte(self, token_id: int) -> bool:
        return _BYTE.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None

    def certain_text(self, token_id: int) -> str | None:
        if token_id not in self._certain:
            # Of added tokens, the library alone knows which it leaves out.
            kept = not (token_id in self._added or self.is_hidden(token_id) or self.is_byte(token_id))
            name = self._tokenizer.id_to_token(token_id) if kept and self._reader.exact else None
            self._certain[token_id] = None if name is None else _whole(self._reader.read(name))
        return self._certain[token_id]

    @cached_property
    def _reader(self) -> TokenReader:
        decoder = self._tokenizer.decoder
        return TokenReader(None if decoder is None else json.loads(decoder.__getstate__()))

    def vocab_size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def vocabulary(self) -> Vocabulary:
        tokens = [b""] * self.vocab_size()
        special = set(range(len(tokens)))
        for name, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            hidden = token_id in self._added and self._added[token_id].special
            tokens[token_id] = name.encode() if hidden else self._reader.read(name)
            if not hidden:
                special.discard(token_id)
        return Vocabulary(tuple(tokens), frozenset(special), lambda text: self.encode(text, False), self._reader.exact)

    def to_bytes(self) -> bytes:
        return str(self._tokenizer.to_str()).encode()


def _whole(data: bytes) -> str | None:
    """Bytes as text, where they are whole characters, and say so."""
    text = data.decode(errors="replace")
    return text if text and "\ufffd" not in text else None


@contextmanager
def _library_errors(source: Path, what: str) -> Iterator[None]:
    """The tokenizers library raises plain Exceptions, and where its Rust part panics, a PanicException, which is not even one."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"{source}: the tokenizers library cannot {what} ({error}); download it again, or update tokenizers"
        ) from error


def _rust_token(token: AddedToken) -> Any:
    import tokenizers

    flags = {"normalized": token.normalized, "lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return tokenizers.AddedToken(token.content, special=token.special, **flags)


class SentencePieceBackend:
    """A SentencePiece model. Special tokens in a text are found as transformers finds them, which SentencePiece itself does not."""

    def __init__(self, data: bytes, settings: TokenizerSettings, source: Path) -> None:
        import sentencepiece

        data = model_from_bundle(data)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=data + _NO_DUMMY_PREFIX)
        except RuntimeError as error:
            raise TokenizerError(f"{source}: is not a SentencePiece model ({error}); {_CONVERT}") from error
        self._data, self._settings, self._source = data, settings, source
        pieces = range(self._model.get_piece_size())
        self._hidden = {i for i in pieces if self._model.is_control(i) or self._model.is_unknown(i) or self._model.is_unused(i)}
        self._special = {self._model.id_to_piece(i): i for i in self._hidden if not self._model.is_unused(i)}
        for token in settings.added_tokens:
            if token.id is not None and token.id not in pieces:
                self._special[token.content] = token.id
        for token in [*settings.special_tokens.values(), *settings.extra_tokens]:
            if (found := self.token_id(token.content)) is not None:
                self._special[token.content] = found
        self._hidden.update(self._special.values())
        longest_first = sorted(filter(None, self._special), key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, longest_first)) if longest_first and not settings.split_special_tokens else "(?!)")
        self.own_bos, self.own_eos = (i if i >= 0 else None for i in (self._model.bos_id(), self._model.eos_id()))
        named = {name: self.token_id(token.content) for name, token in settings.special_tokens.items()}
        bos, eos = named.get("bos_token", self.own_bos), named.get("eos_token", self.own_eos)
        self._before = [*([bos] if settings.add_bos and bos is not None else []), *self._ids(settings.before)]
        self._after = [*self._ids(settings.after), *([eos] if settings.add_eos and eos is not None else [])]
        flagged = (*settings.added_tokens, *settings.special_tokens.values(), *settings.extra_tokens)
        self._lstrip = {token.content for token in flagged if token.lstrip}
        self._rstrip = {token.content for token in flagged if token.rstrip}
        self._certain: dict[int, str | None] = {}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = list(self._pieces(text))
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def _pieces(self, text: str) -> Iterator[int]:
        begin, strip = 0, False
        for match in [*self._split.finditer(text), None]:
            stretch = text[begin : match.start() if match else None]
            stretch = stretch.lstrip() if strip else stretch
            yield from self._stretch(stretch.rstrip() if match and match[0] in self._lstrip else stretch, first=begin == 0)
            if match:
                yield self._special[match[0]]
                begin, strip = match.end(), match[0] in self._rstrip

    def _stretch(self, text: str, *, first: bool) -> list[int]:
        """The ids of what stands between special tokens. `first`: it begins the text."""
        prefixed = self._settings.prefix == "always" or (self._settings.prefix == "first" and first)
        return list((self._model if prefixed else self._bare).encode(text))

    def _ids(self, tokens: Sequence[str]) -> list[int]:
        return [found for token in tokens if (found := self.token_id(token)) is not None]

    def encode_text(self, text: str, pair: str | None) -> EncodedText:
        """Each text between the special tokens of a text by itself. TokenizerError where a text has special tokens in it."""
        tokens: list[tuple[int, tuple[int, int], int | None]] = [(token, (0, 0), None) for token in self._before]
        for which, part in enumerate(part for part in (text, pair) if part is not None):
            found = list(self._placed(part))
            if [token for token, _ in found] != list(self._pieces(part)):
                raise TokenizerError(f"{self._source}: where the tokens of a text with special tokens in it are is not known; {_CONVERT}")
            tokens += [(token, place, which) for token, place in found]
            tokens += [(token, (0, 0), None) for token in self._after]
        ids, offsets, sequence = zip(*tokens, strict=True) if tokens else ((), (), ())
        return EncodedText(ids, (0,) * len(ids), offsets, sequence)

    def _placed(self, text: str) -> Iterator[tuple[int, tuple[int, int]]]:
        """Ids, each with the characters that it covers; of the bytes of one character, the last covers it."""
        from sentencepiece.sentencepiece_pb2 import SentencePieceText

        model = self._bare if self._settings.prefix == "never" else self._model
        end = 0
        for piece in SentencePieceText.FromString(model.encode(text, out_type="serialized_proto")).pieces:
            start, end = end, end + len(piece.surface)
            yield piece.id, (start, end)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        model = self._bare if self._settings.prefix == "never" else self._model
        if skip_special_tokens:
            return str(model.decode([i for i in ids if not self.is_hidden(i)]))
        texts = {i: text for text, i in self._special.items()}
        stretches = groupby(ids, texts.get)
        return "".join(
            special * len(list(part)) if special is not None else str(model.decode([i for i in part if not self.is_hidden(i)]))
            for special, part in stretches
        )

    def token_id(self, token: str) -> int | None:
        if token in self._special:
            return self._special[token]
        found = int(self._model.piece_to_id(token))
        return found if self._model.id_to_piece(found) == token else None

    def is_hidden(self, token_id: int) -> bool:
        return token_id in self._hidden or not 0 <= token_id < self._model.get_piece_size()

    def is_byte(self, token_id: int) -> bool:
        return bool(self._model.is_byte(token_id))

    def certain_text(self, token_id: int) -> str | None:
        if token_id not in self._certain:
            text = None if self.is_hidden(token_id) or self.is_byte(token_id) else _whole(self._piece_bytes(token_id))
            # A model may have its spaces behind words, and leave out one at a text's end.
            self._certain[token_id] = None if text is None or text.endswith(" ") else text
        return self._certain[token_id]

    def vocab_size(self) -> int:
        return max(self._model.get_piece_size(), *(i + 1 for i in self._special.values()), 0)

    def vocabulary(self) -> Vocabulary:
        names = {token_id: name for name, token_id in self._special.items()}
        tokens = [names[i].encode() if i in names else b"" if self.is_hidden(i) else self._piece_bytes(i) for i in range(self.vocab_size())]
        special = frozenset(i for i in range(len(tokens)) if self.is_hidden(i))
        return Vocabulary(tuple(tokens), special, lambda text: list(self._bare.encode(text)))

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = str(self._model.id_to_piece(token_id))
        return bytes.fromhex(piece[3:5]) if self.is_byte(token_id) else piece.replace("▁", " ").encode()

    def to_bytes(self) -> bytes:
        return self._data
