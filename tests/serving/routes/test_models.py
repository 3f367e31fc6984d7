from collections.abc import Callable
from dataclasses import replace

import openai
import pytest

from flatlm.serving.running import Served
from tests.serving.conftest import Running


def test_what_is_served_is_listed(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo"]
    assert client.models.retrieve("demo") == listed[0]


def test_a_name_may_have_slashes(start: Callable[..., Running], demo: Served) -> None:
    server = start(replace(demo, names=("org/demo",)))
    assert server.client().models.retrieve("org/demo").id == "org/demo"
    with server.http() as http:
        assert http.get("/v1/models/org/demo").json()["id"] == "org/demo"
        assert "/v1/models/{model}" in http.get("/openapi.json").json()["paths"]
        assert '{route="/v1/models/{model}",status="200"} 2.0' in http.get("/metrics").text


@pytest.mark.parametrize("name", ["other", "../demo", "/etc/passwd"])
def test_other_models_are_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    with pytest.raises(openai.NotFoundError, match="not served here; there are demo"):
        client.completions.create(model=name, prompt="Once")
