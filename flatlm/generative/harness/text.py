"""Texts and conversations as tokens, in the way in which lm-evaluation-harness's own model of transformers (`hf`) makes them."""

from collections.abc import Mapping, Sequence

from flatlm.errors import TextError, TokenizerError
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

_TAG = "flatlm-continues-here "


class HarnessTokenizer:
    """A tokenizer, and what a user asks of it. `tokenizer`: the Tokenizer itself."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, add_bos_token: bool | None = None, prefix_token_id: int | None = None
    ) -> None:
        """`vocab_size`: the model's. `add_bos_token`: True or False in place of what the tokenizer does by itself.

        `prefix_token_id`: the token before a text without a context; BOS, else EOS, by default.
        """
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._add_special_tokens = add_bos_token is not False
        named = self._named("eos_token")
        self.eos_id = next(iter(tokenizer.eos_ids), None) if named is None else tokenizer.token_id(named)
        choices = (prefix_token_id, tokenizer.bos_id, self.eos_id)
        self.prefix_id = next((i for i in choices if i is not None), None)

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """The ids of a text to be scored; by default begun with BOS as the tokenizer has it, unless it begins with the prefix already.

        TextError where the tokenizer is not the model's.
        """
        if add_special_tokens is None:
            begun = self.prefix_id is not None and text.startswith(self.text_of(self.prefix_id))
            add_special_tokens = self._add_special_tokens and not begun
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if ids and max(ids) >= self._vocab_size:
            raise TextError(
                f"{self.tokenizer.source} is the wrong tokenizer: it gives token {max(ids)}, and the model has a vocabulary of "
                f"{self._vocab_size}"
            )
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text to be continued, where only BOS itself counts as a beginning. TextError as above."""
        bos = self._named("bos_token")
        begun = bos is not None and text.startswith(bos)
        return self.encode(text, add_special_tokens=self._add_special_tokens and not begun)

    def require_prefix(self) -> int:
        """The token before a text without a context. Raises TokenizerError."""
        if self.prefix_id is None:
            raise TokenizerError(
                f"{self.tokenizer.source} names neither BOS nor EOS, so no token can stand before a text's first; give prefix_token_id"
            )
        return self.prefix_id

    def text_of(self, token: int) -> str:
        """A token's text, also where it is a special one."""
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def render(self, conversation: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation as text, with the beginning of an answer, or else with the last message left open.

        A template that refuses it gets it without its system messages. Raises TokenizerError.
        """
        try:
            return self._render(conversation, add_generation_prompt)
        except TokenizerError:
            plain = [message for message in conversation if message["role"] != "system"]
            if len(plain) in (0, len(conversation)):
                raise
            return self._render(plain, add_generation_prompt)

    def _render(self, conversation: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        if add_generation_prompt:
            return self.tokenizer.render_chat(conversation)
        *before, last = conversation
        text = self.tokenizer.render_chat([*before, {**last, "content": last["content"] + _TAG}], add_generation_prompt=False)
        if _TAG.strip() not in text:
            raise TokenizerError(f"{self.tokenizer.source}: its chat template leaves the last message out, so no answer can continue it")
        end = text.rindex(_TAG.strip())
        # A template that trims messages would have trimmed the end of this one, too.
        return text[:end] if text[end:].startswith(_TAG) else text[:end].rstrip()

    def _named(self, name: str) -> str | None:
        token = self.tokenizer.settings.special_tokens.get(name)
        return None if token is None else token.content
