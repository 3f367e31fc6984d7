import openai

MESSAGES = [{"role": "system", "content": "Once upon"}, {"role": "user", "content": [{"type": "text", "text": " a time"}]}]


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=MESSAGES, max_completion_tokens=30, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 30


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    options = {"model": "demo", "messages": MESSAGES, "max_tokens": 60, "seed": 5}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_n_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    several = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=20, seed=7, n=3)
    alone = [client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=20, seed=7 + place) for place in range(3)]
    assert [choice.message.content for choice in several.choices] == [one.choices[0].message.content for one in alone]
    assert len({choice.message.content for choice in several.choices}) == 3
