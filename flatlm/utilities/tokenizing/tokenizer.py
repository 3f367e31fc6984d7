"""A checkpoint's tokenizer: text to ids as transformers 5 gives them, ids to text, and conversations to ids.

`tokenizer.json` is preferred; a SentencePiece `tokenizer.model` serves where there is none, and then the files of older checkpoints
(older_vocabularies.py). With a tokenizer.json, its own
post-processor decides on BOS and EOS, and add_bos_token in tokenizer_config.json is not heeded; with a SentencePiece model,
add_bos_token decides, and none is added where it is absent (transformers 5 does the same, in both cases).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flatlm.errors import TokenizerError
from flatlm.utilities.checkpoints.gguf_paths import find_gguf
from flatlm.utilities.tokenizing.backends import Backend, HfBackend, SentencePieceBackend
from flatlm.utilities.tokenizing.chat_template import render_chat
from flatlm.utilities.tokenizing.conversion import model_for_bundle
from flatlm.utilities.tokenizing.cpm import CpmBackend
from flatlm.utilities.tokenizing.encoded_text import EncodedText
from flatlm.utilities.tokenizing.named_templates import PLAIN
from flatlm.utilities.tokenizing.older_vocabularies import find_vocabulary
from flatlm.utilities.tokenizing.settings import TokenizerSettings, read_bytes, read_settings
from flatlm.utilities.tokenizing.vocabulary import Vocabulary

__all__ = ["StreamDecoder", "Tokenizer", "TokenizerKind", "TokenizerSettings"]

TokenizerKind: TypeAlias = Literal["hf", "sentencepiece"]

_FILES: dict[str, TokenizerKind] = {"tokenizer.json": "hf", "tokenizer.model": "sentencepiece"}
_BACKENDS: dict[TokenizerKind, type[HfBackend] | type[SentencePieceBackend]] = {"hf": HfBackend, "sentencepiece": SentencePieceBackend}
_OTHER_FILES = ("vocab.json", "tekken.json", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model")

_PROBE = "The quick brown fox, 1234567890 - naïve café;  def main():\n\treturn [x**2 for x in range(10)]  # 中文 日本語 русский 😀\n"


class Tokenizer:
    """Text to token ids, and back.

    kind: "hf" (the tokenizers library) or "sentencepiece". source: the file it came from. bos_id: the id of the token that begins a
    text, or None. eos_ids: all ids that end one. chat_template: Jinja text, or None.
    """

    def __init__(self, kind: TokenizerKind, backend: Backend, settings: TokenizerSettings, source: Path) -> None:
        """Use `Tokenizer.load` or `Tokenizer.from_bytes`."""
        self.kind, self.settings, self.source = kind, settings, source
        self._backend = backend
        named = {name: backend.token_id(token.content) for name, token in settings.special_tokens.items()}
        begins = (named.get("bos_token"), settings.bos_id, backend.own_bos)
        self.bos_id: int | None = next((i for i in begins if i is not None), None)
        ends = (*settings.eos_ids, named.get("eos_token", backend.own_eos))
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))
        self.chat_template = settings.chat_template

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a checkpoint's directory, from a tokenizer.json or SentencePiece file, beside which its settings lie, or from a GGUF file.

        Raises TokenizerError.
        """
        path = Path(path)
        if path.is_dir():
            source = next((path / name for name in _FILES if (path / name).is_file()), None) or find_gguf(path)
        elif path.exists():
            source = path
        else:
            raise TokenizerError(f"{path}: does not exist; give a directory with a tokenizer.json or tokenizer.model, or such a file")
        if (source is None or source.name not in _FILES) and (older := find_vocabulary(source or path)) is not None:
            return cls.from_bytes(older.kind, older.data, settings=older.settings, source=older.source)
        if source is None:
            raise TokenizerError(_no_tokenizer(path))
        if find_gguf(source) is not None:
            from flatlm.utilities.tokenizing.gguf import read_tokenizer

            found, data, settings = read_tokenizer(source)
            return cls.from_bytes(found, data, settings=settings, source=source)
        kind: TokenizerKind = "hf" if source.suffix == ".json" else "sentencepiece"
        return cls.from_bytes(kind, read_bytes(source), settings=read_settings(source.parent), source=source)

    @classmethod
    def from_bytes(
        cls, kind: TokenizerKind, data: bytes, *, settings: TokenizerSettings | None = None, source: Path = Path("tokenizer")
    ) -> Tokenizer:
        """From a file's content, such as a bundle's section; `source` is for messages. Raises TokenizerError."""
        if kind not in _BACKENDS:
            raise TokenizerError(f"{source}: {kind!r} is no kind of tokenizer; there are {', '.join(_BACKENDS)}")
        if data.startswith(b"version https://git-lfs.github.com/spec/"):
            raise TokenizerError(f"{source}: is a Git LFS pointer, not the tokenizer itself; run `git lfs pull`, or download the file")
        settings = settings or TokenizerSettings()
        return cls(kind, (CpmBackend if settings.cpm else _BACKENDS[kind])(data, settings, source), settings, source)

    def to_bytes(self) -> bytes:
        """The vocabulary as one file of its kind (tokenizer.json or SentencePiece model), for a bundle.

        It gives the same ids by itself, but that no file can say split_special_tokens, and a SentencePiece model cannot say which
        tokens go before and after a text, nor `prefix` "always": for those, `from_bytes` needs the settings again. Raises
        TokenizerError for a chat that such a model cannot serve.
        """
        data = self._backend.to_bytes()
        if self.kind == "sentencepiece":
            return model_for_bundle(data, self.settings, self.source, bare=self._chats_begin_with_a_special_token())
        return data

    def _chats_begin_with_a_special_token(self) -> bool:
        if self.chat_template is None:
            return False
        try:
            ids = self.apply_chat_template([{"role": "user", "content": "a"}])
        except TokenizerError:
            return False
        return bool(ids) and self._backend.is_hidden(ids[0])

    @property
    def vocab_size(self) -> int:
        """The largest id, plus one. A model's own vocabulary is often padded beyond it."""
        return self._backend.vocab_size()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What each token stands for, as bytes; made when it is first asked for."""
        return self._backend.vocabulary()

    def probe(self) -> str:
        """A digest of the ids that a fixed text of many scripts gets: with different ones, tokenizers give other ids to the same text."""
        ids = self.encode(_PROBE, add_special_tokens=False)
        return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary, or None."""
        return self._backend.token_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, with BOS and the like as transformers adds them. Raises TokenizerError for what is not Unicode text."""
        _require_unicode(text)
        return self._backend.encode(text, add_special_tokens)

    def encode_text(self, text: str, pair: str | None = None) -> EncodedText:
        """The ids of a text, or of a pair of texts as their model reads pairs, and where each token is. Raises TokenizerError."""
        for part in (text, pair or ""):
            _require_unicode(part)
        return self._backend.encode_text(text, pair)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids. Ids beyond the vocabulary are left out, and special tokens by default; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens)

    def stream_decoder(self, context: Sequence[int] = ()) -> StreamDecoder:
        """Decodes ids as they come. With a context, such as the prompt's ids, the text continues it: a leading space is kept."""
        return StreamDecoder(self._backend, context)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
    ) -> str:
        """A conversation as the text that the model was trained on. Raises TokenizerError.

        `tools`: what the model may call, as `chat_template.render_chat` has them. `template`: Jinja text in the place of its own.
        """
        template = self.chat_template if template is None else template
        if template is None:
            raise TokenizerError(
                f"{self.source}: comes with no chat template (in tokenizer_config.json or chat_template.jinja), so this model takes "
                "plain prompts only; a model tuned for chat has one"
            )
        tokens = {name: token.content for name, token in self.settings.special_tokens.items()}
        return render_chat(template, messages, special_tokens=tokens, add_generation_prompt=add_generation_prompt, tools=tools)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
    ) -> list[int]:
        """A conversation's ids, ready for the model. Raises TokenizerError."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, tools=tools, template=template)
        return self.encode_chat(text, template)

    def encode_chat(self, text: str, template: str | None = None) -> list[int]:
        """The ids of what `render_chat` gave: special tokens are those that the template wrote.

        The named template "plain" writes none: its text gets those that any text gets.
        """
        return self.encode(text, add_special_tokens=template == PLAIN)


class StreamDecoder:
    """Text in pieces, as ids come: `push` each id, `finish` at the end.

    The pieces, joined, are `decode` of all ids (after the context, where there is one), and no piece splits a character. Text is held
    back while later ids can still change it: an unfinished character, and a run of byte tokens, which counts as one.
    """

    _KEEP, _SHRINK = 16, 64

    def __init__(self, backend: Backend, context: Sequence[int] = ()) -> None:
        self._backend = backend
        self._window = [int(i) for i in context]
        self._given = backend.decode(self._window).rstrip("\ufffd")
        self._certain = False
        self._shrink()

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before; often empty."""
        token_id = int(token_id)
        text = self._backend.certain_text(token_id)
        if text is not None and self._certain and self._given:
            self._window.append(token_id)
            self._given += text
            self._shrink()
            return text
        self._certain = False
        if self._backend.is_hidden(token_id):
            return ""
        self._window.append(token_id)
        if self._backend.is_byte(token_id):
            return ""
        self._certain = text is not None
        text = self._backend.decode(self._window)
        return "" if text.endswith("\ufffd") else self._give(text)

    def finish(self) -> str:
        """What was held back, with U+FFFD for characters that stayed unfinished."""
        return self._give(self._backend.decode(self._window))

    def _give(self, text: str) -> str:
        piece, self._given = text[len(self._given) :], text
        self._shrink()
        return piece

    def _shrink(self) -> None:
        """Decode only the last ids at the next step. What is cut off, perhaps within a character, is missing before and after alike."""
        if len(self._window) > self._SHRINK:
            self._window = self._window[-self._KEEP :]
            self._given = self._backend.decode(self._window).rstrip("\ufffd")


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not valid Unicode: {error.reason} at character {error.start}; pass UTF-8") from error


def _no_tokenizer(directory: Path) -> str:
    text = f"{directory}: has no tokenizer: neither {' nor '.join(_FILES)}"
    found = [name for name in _OTHER_FILES if (directory / name).exists()]
    if found:
        return (
            f"{text}; {', '.join(found)} is of a kind that FlatLM does not read: where transformers can load it, write a "
            "tokenizer.json with transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return f"{text}; download one of them next to config.json"
