from pathlib import Path

import httpx
import pytest

import flatlm
from flatlm.serving.text_bounds import LOSSY_TOKEN, TextBound
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.serving.conftest import Running
from tests.utilities.tokenizing.made_tokenizers import bpe_with_bytes, llama_like, unigram, word_piece

DEMO = Path(flatlm.__file__).parent / "assets" / "demo_model"
MADE = {"bpe_with_bytes": bpe_with_bytes, "llama_like": llama_like, "unigram": unigram, "word_piece": word_piece}


@pytest.fixture(scope="module", params=["demo", "sentencepiece", *MADE])
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> Tokenizer:
    if request.param in MADE:
        return Tokenizer.from_bytes("hf", MADE[request.param]().to_str().encode())
    return Tokenizer.load(DEMO if request.param == "demo" else shared / "checkpoints" / "stories260K" / "tokenizer.model")


@pytest.mark.parametrize(
    "part",
    [
        "a",
        " ",
        "\n",
        "Once upon a time ",
        "the",
        "\u200b",
        "\x01",
        "\U0010fffd",
        "e\u0301",
        "\ufb03",
        "<s>",
        "</s> ",
        "\u1112\u1161\u11ab",
        "中",
        "the   ",
    ],
)
def test_what_fits_is_never_refused(tokenizer: Tokenizer, part: str) -> None:
    bound = TextBound(tokenizer)
    for times in (1, 3, 100):
        assert bound.may_fit(part * times, max(1, len(tokenizer.encode(part * times, add_special_tokens=False))))


def test_what_is_far_too_long_is_refused(tokenizer: Tokenizer) -> None:
    bound = TextBound(tokenizer)
    assert not bound.may_fit("Once upon a time " * (LOSSY_TOKEN * 2), 10)
    assert not bound.may_fit("\ud800" * (LOSSY_TOKEN * 10), 10)


def test_a_text_of_megabytes_is_not_cut_into_tokens(http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.models["demo"].tokenizer._backend, "encode", None)
    text = "Once upon a time " * 100_000
    messages = [{"role": "user", "content": text}]
    for path, fields in (
        ("completions", {"prompt": text}),
        ("chat/completions", {"messages": messages}),
        ("messages/count_tokens", {"messages": messages}),
    ):
        answer = http.post(f"/v1/{path}", json={"model": "demo", **fields})
        assert answer.status_code == 400
        assert "context of 512 tokens can be" in answer.json()["error"]["message"]
