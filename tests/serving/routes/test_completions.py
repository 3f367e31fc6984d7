from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.utilities.bundling import bundled_tokenizer
from tests.serving.conftest import Running

PROMPT = "Once upon a time"


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "demo", "prompt": PROMPT, "temperature": 0, **fields})


def test_a_completion_is_what_the_file_writes(client: openai.OpenAI, demo_file: Path) -> None:
    answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=40, temperature=0)
    tokenizer = bundled_tokenizer(demo_file)
    with Runner.open(demo_file, threads=1) as runner:
        expected = generate(runner, tokenizer, tokenizer.encode(PROMPT), GenerationConfig(max_new_tokens=40))
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 40, 45)


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt=PROMPT, max_tokens=100, seed=3)
    chunks = list(
        client.completions.create(model="demo", prompt=PROMPT, max_tokens=100, seed=3, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) > 3


def test_no_more_tokens_than_asked_for_by_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=PROMPT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_probabilities(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=2, max_tokens=12).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 12
    assert all(token in top and len(top) == 2 for token, top in zip(found.tokens, found.top_logprobs, strict=True))
    for offset, token in zip(found.text_offset, found.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    chunks = [chunk.choices[0].logprobs for chunk in ask(client, logprobs=2, max_tokens=12, stream=True)]
    assert [token for chunk in chunks for token in chunk.tokens] == found.tokens
    assert [offset for chunk in chunks for offset in chunk.text_offset] == found.text_offset


def test_the_places_of_tokens_whose_text_is_held_back(client: openai.OpenAI) -> None:
    """By a stop string: what it may begin with is held back until it does not."""
    whole = ask(client, logprobs=0, max_tokens=12).choices[0]
    places = whole.logprobs.text_offset
    assert len(set(places)) == 12
    held = ask(client, logprobs=0, max_tokens=12, stop=whole.text[:-2] + "?").choices[0]
    assert (held.text, held.logprobs.text_offset) == (whole.text, places)
    cut = ask(client, logprobs=0, max_tokens=12, stop=whole.text[:9]).choices[0]
    assert cut.text == "" and cut.logprobs.text_offset == places[: len(cut.logprobs.tokens)]
    echoed = ask(client, logprobs=0, max_tokens=12, stop=whole.text[:-2] + "?", echo=True).choices[0]
    assert echoed.logprobs.text_offset[-12:] == [len(PROMPT) + place for place in places]


def test_the_places_of_parts_of_characters(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=0, max_tokens=40, extra_body={"regex": "a😀b"}).choices[0]
    assert choice.text == "a😀b"
    assert [choice.logprobs.text_offset[0], *choice.logprobs.text_offset[-2:]] == [0, 1, 2]


def test_an_echo_is_the_prompt_and_its_probabilities(client: openai.OpenAI, demo_file: Path) -> None:
    plain, echoed = ask(client, max_tokens=8).choices[0], ask(client, max_tokens=8, echo=True).choices[0]
    assert echoed.text == PROMPT + plain.text
    choice = ask(client, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert choice.text == PROMPT
    tokenizer = bundled_tokenizer(demo_file)
    ids = tokenizer.encode(PROMPT)
    with Runner.open(demo_file, threads=1) as runner:
        logits = np.stack([runner.step(token) for token in ids[:-1]]).astype(np.float64)
    expected = logits[range(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(axis=1))
    assert choice.logprobs.token_logprobs[0] is None
    assert np.allclose(choice.logprobs.token_logprobs[1:], expected, atol=1e-4)
    assert "".join(choice.logprobs.tokens[1:]).strip() == PROMPT
    assert [PROMPT[offset:][:1] for offset in choice.logprobs.text_offset][-1] == " "
    both = ask(client, max_tokens=8, echo=True, logprobs=1).choices[0]
    assert both.text == PROMPT + plain.text
    assert both.logprobs.tokens[: len(ids)] == choice.logprobs.tokens
    assert len(both.logprobs.tokens) == len(ids) + 8
    chunks = [chunk.choices[0] for chunk in ask(client, max_tokens=8, echo=True, logprobs=1, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == both.text
    assert [token for chunk in chunks for token in chunk.logprobs.tokens] == both.logprobs.tokens


def test_several_prompts_of_all_kinds(client: openai.OpenAI, demo_file: Path) -> None:
    ids = bundled_tokenizer(demo_file).encode(PROMPT)
    texts = [PROMPT, "The dog"]
    alone = [ask(client, prompt=text).choices[0].text for text in texts]
    assert [choice.text for choice in ask(client, prompt=texts).choices] == alone
    assert ask(client, prompt=ids).choices[0].text == alone[0]
    assert ask(client, prompt=[ids, ids]).usage.prompt_tokens == 2 * len(ids)
    several = ask(client, prompt=texts, n=2, seed=1, temperature=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[2].text == ask(client, prompt=texts[1], seed=1, temperature=1).choices[0].text


def test_what_was_read_before_is_told(client: openai.OpenAI) -> None:
    prompt = "Nobody has said this before in this file of tests, and it is said twice now."
    first, second = ask(client, prompt=prompt), ask(client, prompt=prompt)
    assert first.usage.prompt_tokens_details.cached_tokens <= 1  # the token that begins all texts
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
    assert first.choices[0].text == second.choices[0].text


def test_a_text_that_fills_the_context_ends(client: openai.OpenAI) -> None:
    ids = [1, *range(10, 410)]
    answer = ask(client, prompt=ids, max_tokens=5000, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 513  # the last token made need not be read


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [5, -1]}, "prompt"),
        ({"prompt": [1024]}, "prompt"),
        ({"prompt": {"a": "b"}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 17}, "n"),
        ({"prompt": [1] * 513}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"model": 5}, "model"),
    ],
)
def test_what_cannot_be_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = http.post("/v1/completions", json={"model": "demo", "prompt": "Once", **fields})
    assert answer.status_code == 400, answer.text
    assert str(answer.json()["error"]["param"]).startswith(param)


def test_a_prompt_beyond_the_context_has_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="513 tokens, and this model's context is 512") as found:
        ask(client, prompt=[1] * 513)
    assert found.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "demo", "prompt": "a", "temperature": NaN}',
        b'{"model": "demo", "prompt": "a", "temperature": Infinity}',
        b'{"model": "demo", "prompt": "a", "temperature": 1e999}',
        b'{"model": "demo", "prompt": "a", "max_tokens": 1' + b"0" * 400 + b"}",
        b'{"model": "demo", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b'{"model": "demo", "prompt": "\\ud800"}',
        b'{"model": "\\ud800", "prompt": "a"}',
        b'{"model": "demo", "prompt": "a", "\\ud800": 1}',
        b'{"model": "demo", "prompt": "a", "stop": "\\udfff"}',
        b'{"model": "demo", "prompt": "a", "regex": "\\udfff"}',
    ],
)
def test_bodies_that_are_no_request(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert http.post("/v1/completions", json={"model": "demo", "prompt": "Once"}).status_code == 200


def test_a_form_is_no_request(http: httpx.Client) -> None:
    """What a page of another site can send without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = http.post("/v1/completions", content=b'{"model": "demo", "prompt": "Once"}', headers={"content-type": kind})
        assert answer.status_code == 400
        assert "send Content-Type: application/json" in answer.json()["error"]["message"]


def test_prompts_are_counted_before_they_are_read(http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.models["demo"], "tokenizer", None)
    for prompt in (["Once"] * 17, [[1]] * 17):
        answer = http.post("/v1/completions", json={"model": "demo", "prompt": prompt})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    answer = http.post("/v1/completions", json={"model": "demo", "prompt": [1] * 513})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert http.post("/v1/completions", json={"model": "demo", "prompt": [[1]]}).status_code == 200  # ids are no text unless echoed
