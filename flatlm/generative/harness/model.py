"""EleutherAI's lm-evaluation-harness asks, an exported file answers: `lm_eval --model flatlm --model_args path=FILE`.

What the harness's own model of transformers (`hf`) does decides: which tokens a context and its continuation are, what is cut where they
are too long, where a generated text ends. So the same weights get the same scores. One text is read at a time, whatever the batch size.

This module needs lm_eval; `harness.evaluate_tasks` says so where it is missing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import flatlm
from flatlm.errors import RuntimeFileError, TextError, TokenizerError
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.harness.answers import Answers, content_key, request_key
from flatlm.generative.harness.generation import GenerationSettings, continue_text
from flatlm.generative.harness.reader import PrefixReader
from flatlm.generative.harness.text import HarnessTokenizer
from flatlm.generative.runner import Runner
from flatlm.progress import Progress

Score = tuple[float, bool]
"""A continuation's log-probability in nats, and whether each of its tokens is the most probable one."""
Asked: TypeAlias = Mapping[str, tuple[Any, ...]]
"""Requests' arguments, by key."""
Found: TypeAlias = Iterator[tuple[int, Any]]
"""Answers, as they come, by the request's index."""
IGNORED = ("batch_size", "max_batch_size", "device", "dtype", "trust_remote_code")
"""Arguments that the harness gives to every model, and that an exported file has no use for."""
_SETTLED = ("max_gen_toks", "add_bos_token", "prefix_token_id", "think_end_token", "seed")
"""Options that change answers, beside `max_length` and the tokenizer."""


@dataclass(frozen=True)
class HarnessOptions:
    """What `--model_args` may hold beside the path. None: the default of the file or its tokenizer."""

    tokenizer: str | Path | None = None
    """Directory of the checkpoint or its tokenizer; a .litertlm bundle has its own."""
    work: str | Path | None = None
    """Directory where answers are kept as they come; a later run with the same file, tokenizer and options finds them."""
    max_length: int | None = None
    """The most tokens of a context, at most the file's own."""
    max_gen_toks: int = 256
    """Tokens of a generated text where the task does not say."""
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    """The token before a text without a context; BOS, else EOS, by default."""
    think_end_token: str | int | None = None
    """Of a generated text, only what follows this text or token counts."""
    seed: int = 1234
    """For sampled text."""
    threads: int | None = None

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> "HarnessOptions":
        """RuntimeFileError for an argument that is not known."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(arguments) - {*known, *IGNORED}):
            raise RuntimeFileError(f"model_args: {', '.join(unknown)} is not known; there are path, {', '.join(known)}")
        return cls(**{name: arguments[name] for name in known if arguments.get(name) is not None})


class FlatlmLM(TemplateLM):  # type: ignore[misc]
    """An exported file as a model of the harness."""

    def __init__(self, path: str | Path | None = None, *, progress: Progress | None = None, **options: Any) -> None:
        """`options`: of `HarnessOptions`. Without a `progress`, bars are drawn as the harness draws them.

        Raises RuntimeFileError and TokenizerError.
        """
        super().__init__()
        if path is None:
            raise RuntimeFileError("the model needs a file: --model_args path=FILE")
        self.path = Path(path)
        self.options = HarnessOptions.read(options)
        self._progress = progress
        self.tokenizer = file_tokenizer(self.path, None if self.options.tokenizer is None else Path(self.options.tokenizer))
        self.runner = Runner.open(self.path, threads=self.options.threads)
        self.runner.require_left_to_right()
        self._reader = PrefixReader(self.runner)
        self._text = HarnessTokenizer(
            self.tokenizer,
            vocab_size=self.runner.vocab_size,
            add_bos_token=self.options.add_bos_token,
            prefix_token_id=self.options.prefix_token_id,
        )
        asked = self.options.max_length
        if asked is not None and not 1 <= asked <= self.runner.cache_length:
            raise RuntimeFileError(f"{path}: max_length {asked} is not within its context of {self.runner.cache_length}")
        self.max_length = asked or self.runner.cache_length
        self.requests = 0
        """How many were made so far, and how many of them an earlier run had answered, or an earlier request that was the same."""
        self.found = 0
        self._answers = None if self.options.work is None else Answers(Path(self.options.work) / f"answers-{self._content_key()}.db")

    def close(self) -> None:
        """Frees the model. It cannot be used after it."""
        self.runner.close()
        if self._answers is not None:
            self._answers.close()

    @property
    def scores_by_prefill(self) -> bool:
        """Whether the file's prefill signatures give logits; without them each scored token takes a decode step."""
        return self._reader.scores_by_prefill

    @property
    def eot_token_id(self) -> int | None:
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        return self._text.prefix_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.source).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's, where one is asked for. Raises TokenizerError where it has none, or none of that name."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise TokenizerError(f"{self.tokenizer.source}: its chat template has no name; ask for it without {chat_template!r}")
        if self.tokenizer.chat_template is None:
            self.tokenizer.render_chat([{"role": "user", "content": ""}])  # which says what is missing
        template: str | None = self.tokenizer.chat_template
        return template

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        return self._text.render(chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._text.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Score]:
        """Of pairs (context, continuation)."""
        answers = self._answered("loglikelihood", requests, self._loglikelihoods, disable_tqdm)
        return [(answer[0], answer[1]) for answer in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each foretold from the prefix token on; a long one in windows, which follow one token of context at least."""
        return self._answered("loglikelihood_rolling", requests, self._rolling, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuations of pairs (context, generation_kwargs)."""
        return self._answered("generate_until", requests, self._generations, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[Score]:
        """Of contexts and continuations that are tokens already, as the harness's other models have it."""
        scores = dict(self._scored([(before, ids) for _, before, ids in requests]))
        return [scores[i] for i in range(len(requests))]

    def _loglikelihoods(self, asked: Asked) -> Found:
        return self._scored([self._encode_both(*arguments) for arguments in asked.values()])

    def _encode_both(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            before, ids = self._encode_pair(context, continuation)
        else:
            before, ids = [self._text.require_prefix()], self.tok_encode(continuation, add_special_tokens=False)
            if ids[:1] == before:
                ids = ids[1:]
        shown = repr(continuation if len(continuation) <= 40 else f"{continuation[:40]}...")
        if not before or not ids:
            raise TextError(f"the continuation {shown} has no tokens of its own after its context; nothing can be foretold")
        if len(ids) > self.max_length:
            raise TextError(
                f"the continuation {shown} has {len(ids)} tokens, and {self.path} a context of {self.max_length}; export the model with "
                "a larger --kv-cache-len"
            )
        return before, ids

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[tuple[int, Score]]:
        """The scores of (context, continuation) by their index, in an order in which texts that begin alike follow one another.

        What is too long loses its first tokens. Pairs that are the same but for their last token are read once.
        """
        texts: dict[tuple[int, ...], list[int]] = {}
        for index, (before, ids) in enumerate(pairs):
            texts.setdefault(tuple([*before, *ids][-(self.max_length + 1) :][:-1]), []).append(index)
        for text in sorted(texts):
            yield from self._scored_alike(text, {index: pairs[index][1] for index in texts[text]})

    def _scored_alike(self, text: tuple[int, ...], continuations: Mapping[int, list[int]]) -> Iterator[tuple[int, Score]]:
        """Of continuations that follow one another's places at the end of the same text, each without its last token."""
        wanted = max(map(len, continuations.values()))
        total, greedy = dict.fromkeys(continuations, 0.0), dict.fromkeys(continuations, True)
        seen = 0
        for logits in self._reader.logits(text, wanted):
            exact = logits.astype(np.float64)
            largest = exact.max(-1)
            normalizer = largest + np.log(np.exp(exact - largest[:, None]).sum(-1))
            best = logits.argmax(-1)
            for index, ids in continuations.items():
                skipped = max(0, wanted - len(ids) - seen)  # rows that foretell what is before this continuation
                targets = ids[max(0, seen - (wanted - len(ids))) :][: max(0, len(logits) - skipped)]
                rows = np.arange(skipped, skipped + len(targets))
                total[index] += float((exact[rows, targets] - normalizer[rows]).sum())
                greedy[index] &= bool((best[rows] == targets).all())
            seen += len(logits)
        yield from ((index, (total[index], greedy[index])) for index in continuations)

    def _rolling(self, asked: Asked) -> Found:
        for index, (text,) in enumerate(asked.values()):
            windows = get_rolling_token_windows(self.tok_encode(text), self._text.require_prefix(), self.max_length, 1)
            yield index, sum(score for _, (score, _) in self._scored([make_disjoint_window(window) for window in windows]))

    def _generations(self, asked: Asked) -> Found:
        eos = None if self.eot_token_id is None else self._text.text_of(self.eot_token_id)
        prompts = []
        for index, (key, (context, arguments)) in enumerate(asked.items()):
            settings = GenerationSettings.read(arguments, eos=eos, max_tokens=self.options.max_gen_toks)
            room = self.max_length - settings.max_tokens
            if room < 1:
                raise RuntimeFileError(
                    f"{self.path}: {settings.max_tokens} tokens are to be generated (max_gen_toks) in a context of {self.max_length}: no "
                    "question fits before them; export it with a larger --kv-cache-len, or ask for fewer"
                )
            if not (ids := self._text.encode_prompt(context)[-room:]):
                raise TextError("a prompt to continue has no tokens")
            prompts.append((ids, index, settings, int(request_key("seed", [self.options.seed, key])[:8], 16)))
        for ids, index, settings, seed in sorted(prompts, key=lambda prompt: prompt[:2]):
            think_end = self.options.think_end_token
            yield index, continue_text(self._reader, self.tokenizer, ids, settings, seed=seed, think_end=think_end)

    def _answered(self, method: str, requests: Sequence[Any], answer: Callable[[Asked], Found], disable_tqdm: bool) -> list[Any]:
        """The answers to all, each saved as it comes; what was answered before is not asked again."""
        keys = _keys(method, [request.args for request in requests])
        answers = {}
        if self._answers is not None:
            answers = {key: found for key in keys if (found := self._answers.get(key)) is not None}
        asked = {key: request.args for key, request in zip(keys, requests, strict=True) if key not in answers}
        order = list(asked)
        self.requests += len(keys)
        self.found += len(keys) - len(order)
        with self._shown(method, len(keys) - len(order), len(keys), disable_tqdm) as advance:
            for index, found in answer(asked) if asked else ():
                key = order[index]
                answers[key] = found
                if self._answers is not None:
                    self._answers.add(key, found)
                self.cache_hook.add_partial(method, asked[key], found)
                advance()
        return [answers[key] for key in keys]

    @contextmanager
    def _shown(self, method: str, done: int, total: int, disable_tqdm: bool) -> Iterator[Callable[[], None]]:
        """What is to be called after each answer, for the progress that a user sees."""
        if (progress := self._progress) is not None:
            progress(method, done, total)
            counter = count(done + 1)
            yield lambda: progress(method, next(counter), total)
            return
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, initial=done, desc=f"Running {method} requests", disable=disable_tqdm) as bar:
            yield lambda: bar.update() and None

    def _content_key(self) -> str:
        options = [self.max_length, *(getattr(self.options, name) for name in _SETTLED)]
        files = [self.path, *([] if self.tokenizer.source == self.path else [self.tokenizer.source])]
        return content_key(files, repr([flatlm.__version__, options, self.tokenizer.settings]))


def _keys(method: str, arguments: Sequence[Sequence[Any]]) -> list[str]:
    """One for each request. The same question is one request, but a text that is generated repeatedly may differ."""
    keys = [request_key(method, each) for each in arguments]
    if method != "generate_until":
        return keys
    times = Counter[str]()
    for i, key in enumerate(keys):
        keys[i] = request_key(key, [times[key]])
        times[key] += 1
    return keys
