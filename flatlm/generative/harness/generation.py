"""How lm-evaluation-harness asks for text, as its own model of transformers understands it: samplers, stops, lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.harness.reader import PrefixReader
from flatlm.generative.sampling import Sampler
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

DEFAULT_TOP_K = 50
"""Of transformers, where sampling is asked for without a top-k."""
_LOOKBACK = 2
"""Tokens more than a stop's own in which it is looked for: it may be written in other tokens than its usual ones."""
_WITHOUT_EFFECT: Mapping[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_return_sequences": 1}


@dataclass(frozen=True)
class GenerationSettings:
    """One request's. `until`: texts that end the answer, of which they are no part."""

    until: tuple[str, ...]
    max_tokens: int
    temperature: float
    """0: the most probable token."""
    top_k: int | None = None
    top_p: float | None = None

    @property
    def sampled(self) -> bool:
        return self.temperature > 0

    @classmethod
    def read(cls, arguments: Mapping[str, Any], *, eos: str | None, max_tokens: int) -> "GenerationSettings":
        """From a task's generation_kwargs; `max_tokens` where they give none. RuntimeFileError for what the runner does not do."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        asked = dict(normalize_gen_kwargs(dict(arguments), max_tokens))
        until = tuple(stop for stop in handle_stop_sequences(asked.pop("until"), eos) if stop)
        length, sampled = int(asked.pop("max_gen_toks")), asked.pop("do_sample")
        temperature, top_k, top_p = (asked.pop(name, None) for name in ("temperature", "top_k", "top_p"))
        asked.pop("use_cache", None)
        if unknown := sorted(name for name, value in asked.items() if value is not None and value != _WITHOUT_EFFECT.get(name)):
            raise RuntimeFileError(
                f"generation_kwargs: {', '.join(unknown)} cannot be heeded; an exported file's text is chosen by do_sample, temperature, "
                "top_k and top_p, and ended by until and max_gen_toks"
            )
        if not sampled:
            return cls(until, length, 0.0)
        if not temperature:
            raise RuntimeFileError("generation_kwargs: do_sample needs a temperature above 0")
        return cls(until, length, float(temperature), (DEFAULT_TOP_K if top_k is None else int(top_k)) or None, top_p)


def continue_text(
    reader: PrefixReader,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: GenerationSettings,
    *,
    seed: int,
    think_end: str | int | None,
) -> str:
    """The answer to a prompt, up to the first stop; a token of `tokenizer.eos_ids` is one, too.

    `think_end`: the text or token after which the answer begins, where it is written.
    """
    sampler = Sampler(GenerationConfig(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, seed=seed))
    windows = [(stop, len(tokenizer.encode(stop, add_special_tokens=False)) + _LOOKBACK) for stop in settings.until]
    made: list[int] = []
    logits = reader.begin(prompt)
    while len(made) < settings.max_tokens:
        made.append(sampler.pick(logits))
        if made[-1] in tokenizer.eos_ids:
            break
        if any(stop in tokenizer.decode(made[-window:], skip_special_tokens=False) for stop, window in windows):
            break
        if len(made) < settings.max_tokens:
            logits = reader.step(made[-1])
    if isinstance(think_end, int):
        text = tokenizer.decode(made[len(made) - made[::-1].index(think_end) :] if think_end in made else made).lstrip()
    else:
        text = tokenizer.decode(made)
        text = text.split(think_end)[-1].lstrip() if think_end else text
    for stop in settings.until:
        text = text.split(stop)[0]
    return text
