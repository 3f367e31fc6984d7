from pathlib import Path

import openai

from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.utilities.bundling import bundled_tokenizer

PROMPT = "Once upon a time"


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
