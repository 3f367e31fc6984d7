"""Each server counts for itself, so each test has one."""

from collections.abc import Callable
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from flatlm.serving.running import Served
from tests.serving.conftest import Running


def read(server: Running) -> dict[tuple[str, ...], float]:
    """Each sample's value, by its name and its labels' values."""
    with server.http() as http:
        text = http.get("/metrics").text
    return {(s.name, *s.labels.values()): s.value for family in text_string_to_metric_families(text) for s in family.samples}


def test_what_was_done_is_counted(start: Callable[..., Running]) -> None:
    server = start(slots=2)
    client = server.client()
    client.completions.create(model="demo", prompt="Once upon a time", max_tokens=12, temperature=0)
    client.completions.create(model="demo", prompt="Once upon a time", max_tokens=3, temperature=0)
    with server.http() as http:
        http.get("/nowhere")
        http.post("/v1/completions", json={})
    found = read(server)
    assert found["flatlm_requests_total", "/v1/completions", "200"] == 2
    assert found["flatlm_requests_total", "/v1/completions", "400"] == 1
    assert found["flatlm_requests_total", "other", "404"] == 1
    assert found["flatlm_tokens_total", "read", "demo"] == 5 + 1
    assert found["flatlm_tokens_total", "shared", "demo"] == 4
    assert found["flatlm_tokens_total", "written", "demo"] == 15
    assert found["flatlm_time_to_first_token_seconds_count", "demo"] == 2
    assert found["flatlm_time_per_token_seconds_count", "demo"] == 2
    assert found["flatlm_slots", "demo"] == 2
    assert found["flatlm_busy_slots", "demo"] == found["flatlm_queue_depth", "demo"] == 0
    assert found["flatlm_engine_restarts_total", "demo"] == 0
    assert not [sample for sample in found if sample[0].startswith("flatlm_draft")]


def test_what_a_draft_brings_is_counted(start: Callable[..., Running], demo: Served) -> None:
    """The model is its own draft: greedily, all that it proposes and that there is room for is picked."""
    server = start(replace(demo, spec=replace(demo.spec, draft=demo.spec.file)))
    client = server.client()
    for _ in range(2):
        client.completions.create(model="demo", prompt="Once upon a time", max_tokens=12, temperature=0)
    found = read(server)
    proposed, accepted = (found["flatlm_draft_tokens_total", kind, "demo"] for kind in ("proposed", "accepted"))
    assert (proposed, accepted) == (2 * 9, 2 * 9)  # 12 tokens in 3 calls of 1 + 3
