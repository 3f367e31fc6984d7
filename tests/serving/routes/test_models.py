import openai
import pytest


def test_what_is_served_is_listed(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo"]
    assert client.models.retrieve("demo") == listed[0]


@pytest.mark.parametrize("name", ["other", "../demo", "/etc/passwd"])
def test_other_models_are_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    with pytest.raises(openai.NotFoundError, match="not served here; there are demo"):
        client.completions.create(model=name, prompt="Once")
