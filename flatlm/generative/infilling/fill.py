"""Fills the blanks of a text, one after the other, each by what surrounds it and what was filled in before.

The context is [CLS], the text with its masks, and the end of text where the text does not end with a mask, as THUDM/GLM's and FlagAI's own
generation make it. A blank's answer starts behind <|startofpiece|>, and ends where the model says <|endofpiece|> or the end of text,
neither of which is part of it: the end is never read. A text without a mask gets [gMASK] at its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flatlm.errors import RuntimeFileError, TokenizerError
from flatlm.generative.generate import FinishReason
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.sampling import Sampler
from flatlm.utilities.tokenizing.older_vocabularies import END_OF_PIECE, MASK_TOKENS, START_OF_PIECE
from flatlm.utilities.tokenizing.settings import AddedToken


class InfillingSettings(Protocol):
    """What is asked of a tokenizer's settings."""

    @property
    def special_tokens(self) -> Mapping[str, AddedToken]: ...


class InfillingTokenizer(Protocol):
    """What is asked of a tokenizer."""

    @property
    def settings(self) -> InfillingSettings: ...
    def token_id(self, token: str) -> int | None: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that blanks are filled with. `masks` by id; `end`: of a text, None where the vocabulary has no such token."""

    begin: int
    start_of_piece: int
    end_of_piece: int
    end: int | None
    masks: Mapping[int, str]

    @classmethod
    def of(cls, tokenizer: InfillingTokenizer) -> "SpecialTokens":
        """Raises TokenizerError, with their names, where some are not in the vocabulary."""
        named = {role: token.content for role, token in tokenizer.settings.special_tokens.items()}
        wanted = (named.get("cls_token", "[CLS]"), START_OF_PIECE, END_OF_PIECE)
        ids = [tokenizer.token_id(token) for token in wanted]
        masks = {tokenizer.token_id(name): name for name in (named.get("mask_token", MASK_TOKENS[0]), *MASK_TOKENS)}
        missing = [token for token, found in zip(wanted, ids, strict=True) if found is None]
        missing += [] if set(masks) - {None} else [MASK_TOKENS[0]]
        if missing:
            raise TokenizerError(
                f"the tokenizer has no {', '.join(missing)}, by which blanks are filled: give the model's own, with its added_tokens.json"
            )
        begin, start, stop = (found for found in ids if found is not None)
        end = next((i for name in (named.get("eos_token", ""), "<|endoftext|>") if (i := tokenizer.token_id(name)) is not None), None)
        return cls(begin, start, stop, end, {found: name for found, name in masks.items() if found is not None})


@dataclass(frozen=True)
class Context:
    """What is read before anything is filled in, of a text. `masks`: the places of its blanks; `added`: the mask put at its end."""

    text: str
    token_ids: tuple[int, ...]
    masks: tuple[int, ...]
    added: str | None = None

    @classmethod
    def of(cls, tokenizer: InfillingTokenizer, text: str) -> "Context":
        """Of a text with [MASK], [sMASK] or [gMASK] in it. Raises TokenizerError."""
        special = SpecialTokens.of(tokenizer)
        ids, added = tokenizer.encode(text, add_special_tokens=False), None
        if not set(ids) & set(special.masks):
            mask, added = list(special.masks.items())[-1]
            ids = [*ids, mask]
        ends = [] if special.end is None or ids[-1] in special.masks else [special.end]
        whole = (special.begin, *ids, *ends)
        return cls(text, whole, tuple(place for place, token in enumerate(whole) if token in special.masks), added)


@dataclass(frozen=True)
class FilledBlank:
    """One answer: the mask's token and its place in the context, what was filled in, and why it ended there."""

    mask: str
    position: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Infilling:
    """A text with its blanks filled. `token_ids`: all that was made, blank after blank; `added_mask`: what was put at the prompt's end."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    spans: tuple[FilledBlank, ...]
    added_mask: str | None


def fill(runner: InfillingRunner, tokenizer: InfillingTokenizer, context: Context, config: GenerationConfig) -> Infilling:
    """Fills the blanks in their order; `max_new_tokens` is for each of them.

    `finish_reason` is the last blank's. Where the file's context is full, the blanks that are left stay empty.
    """
    if asked := config.given("stop", "logprobs", "grammar", "ignore_eos"):
        raise RuntimeFileError(f"{runner.file.path}: {', '.join(asked)} cannot be heeded by a model that fills blanks; leave that out")
    special, sampler = SpecialTokens.of(tokenizer), Sampler(config, context.token_ids)
    runner.read_context(context.token_ids)
    blanks = []
    for place in context.masks:
        runner.begin_span(place)
        answer, reason = _answer(runner, special, sampler, config.max_new_tokens)
        mask = special.masks[context.token_ids[place]]
        blanks.append(FilledBlank(mask, place, tokenizer.decode(answer), tuple(answer), reason))
    made = tuple(token for blank in blanks for token in blank.token_ids)
    text = _filled_text(tokenizer, context, blanks)
    return Infilling(text, made, context.token_ids, blanks[-1].finish_reason, tuple(blanks), context.added)


def _filled_text(tokenizer: InfillingTokenizer, context: Context, blanks: Sequence[FilledBlank]) -> str:
    """The prompt as it was written, an answer in the place of each mask: decoding it would change spaces, capitals and unknown letters."""
    if context.added:
        given, whole = (tokenizer.decode(ids) for ids in (context.token_ids, (*context.token_ids, *blanks[0].token_ids)))
        return context.text + (whole[len(given) :] if whole.startswith(given) else blanks[0].text)
    pieces, rest = [], context.text
    for blank in blanks:
        before, found, after = rest.partition(blank.mask)
        if not found:  # the tokenizer found a mask in other words, such as those of another case
            break
        apart = not before or before[-1].isspace()
        pieces += [before, blank.text.strip() if apart else blank.text]
        rest = after
    return "".join([*pieces, rest])


def _answer(runner: InfillingRunner, special: SpecialTokens, sampler: Sampler, most: int | None) -> tuple[list[int], FinishReason]:
    """A span's tokens, all of which have been read then, so that later spans see them, but where the context is full."""
    token, made = special.start_of_piece, list[int]()
    while True:
        if runner.position == runner.cache_length:
            return made, "context"
        logits = runner.step(token)
        if len(made) == most:
            return made, "length"
        token = sampler.pick(logits)
        if token in (special.end_of_piece, special.end):
            return made, "eos"
        sampler.accept(token)
        made.append(token)
