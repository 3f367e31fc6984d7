"""Schemathesis over the server's own OpenAPI description: what it says is what it does, and nothing that is sent makes it fail."""

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import schemathesis
from schemathesis.config import ChecksConfig, GenerationConfig, PositiveDataAcceptanceConfig, SchemathesisConfig

from flatlm.serving.app import create_app
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import Served
from flatlm.serving.settings import ServerSettings
from tests.serving.conftest import Running, running
from tests.serving.encoder_files import EncoderFiles

MODELS = {"/v1/embeddings": "vectors", "/v1/embed": "vectors", "/v1/rerank": "vectors"}
WRITE = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@pytest.fixture(scope="module")
def everything(demo: Served, encoder_files: EncoderFiles) -> Iterator[Running]:
    """A server with an encoder too; no answer is long."""
    vectors = Served(EngineSpec(encoder_files.embedding, threads=1, tokenizer=encoder_files.tokenizer), ("vectors",))
    with running(demo, vectors, max_tokens=4) as found:
        yield found


DESCRIPTION = create_app({}, ServerSettings()).openapi()
"""It depends on the models in nothing but examples of their names."""


def described() -> Any:
    config = SchemathesisConfig()
    # What a schema cannot say is refused too: ids of tokens, fields that do not go together, grammars.
    config.projects.default.checks = ChecksConfig(positive_data_acceptance=PositiveDataAcceptanceConfig(enabled=False))
    config.projects.default.generation = GenerationConfig(max_examples=15, deterministic=True, no_shrink=True)
    return schemathesis.openapi.from_dict(deepcopy(DESCRIPTION), config=config)


schema = described()


@pytest.fixture(scope="module")
def statuses() -> Counter[tuple[str, int]]:
    """How often each path gave each status."""
    return Counter()


def test_the_description_is_the_servers(everything: Running) -> None:
    with everything.http() as http:
        told = http.get("/openapi.json").text
    assert json.loads(told.replace('["demo","vectors"]', "[]")) == DESCRIPTION


@schema.parametrize()
def test_it_does_what_it_says(everything: Running, statuses: Counter[tuple[str, int]], case: Any) -> None:
    name_a_model(case)
    response = case.call(base_url=everything.url)
    statuses[case.path, response.status_code] += 1
    case.validate_response(response)


def name_a_model(case: Any) -> None:
    """One that there is, so that the rest of the request matters."""
    if isinstance(case.body, dict) and isinstance(name := case.body.get("model"), str) and len(name) <= 1000:
        case.body = case.body | {"model": MODELS.get(case.path, "demo")}
        # What a turn must hold by its role, no schema says: nearly all that are generated are refused for it.
        if case.path == "/v1/chat/completions" and case.meta.generation.mode.is_positive and len(str(case.body)) % 2:
            case.body = case.body | {"messages": [{"role": "user", "content": "Once"}]}


def test_much_was_answered(statuses: Counter[tuple[str, int]]) -> None:
    """And much refused: else little was tried."""
    for path in (*WRITE, *MODELS):
        assert statuses[path, 200] >= 5, (path, statuses)
        assert statuses[path, 400] >= 20, (path, statuses)
    assert not [status for _, status in statuses if status >= 500]
