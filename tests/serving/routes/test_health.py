import httpx


def test_a_server_that_waits_is_well(http: httpx.Client) -> None:
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    (model,) = answer.json()["models"]
    assert (model["id"], model["ready"], model["slots"], model["busy"], model["queue"]) == ("demo", True, 4, 0, 0)
