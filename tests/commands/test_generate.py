"""`flatlm generate`: what the answer's tokens are chosen by, what ends it, and what is told of it."""

import math
from pathlib import Path

import pytest

from flatlm.cli import main
from tests.commands.conftest import run_json

ASK = ("--prompt", "the cat sat", "--max-new-tokens", "12")


def test_a_stop_ends_the_text(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ("--prompt", "the cat sat", "--max-new-tokens", "40", "--temperature", "5", "--seed", "1")  # few tokens are of words
    whole = run_json(capsys, "generate", str(bundle), *drawn)
    assert set(whole) == {"text", "token_ids", "prompt_token_ids", "finish_reason"}
    word = whole["text"].split()[-1]
    cut = run_json(capsys, "generate", str(bundle), *drawn, "--stop", "nowhere", "--stop", word)
    assert cut["text"] == whole["text"][: whole["text"].index(word)]
    assert cut["finish_reason"] == "stop"


def test_probabilities_are_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    got = run_json(capsys, "generate", str(bundle), *ASK, "--logprobs", "3")
    assert [told["token_id"] for told in got["logprobs"]] == got["token_ids"]
    for told in got["logprobs"]:
        assert bytes(told["bytes"]).decode() == told["text"]
        assert [sorted(other) for other in told["top"]] == [["logprob", "text", "token_id"]] * 3
        assert told["top"][0] == {name: told[name] for name in ("token_id", "text", "logprob")}  # greedily
        assert sum(math.exp(other["logprob"]) for other in told["top"]) <= 1
    assert main(["generate", str(bundle), *ASK, "--logprobs", "3"]) == 2
    assert "--logprobs K goes with --json" in capsys.readouterr().err


def test_penalties_change_the_text(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run_json(capsys, "generate", str(bundle), *ASK)["token_ids"]
    for name in ("--presence-penalty", "--frequency-penalty", "--repetition-penalty"):
        penalized = run_json(capsys, "generate", str(bundle), *ASK, name, "2")["token_ids"]
        assert len(set(penalized)) > len(set(plain))
    drawn = [run_json(capsys, "generate", str(bundle), *ASK, "--temperature", "3", "--min-p", p, "--seed", "1") for p in ("1", "0")]
    assert drawn[0]["token_ids"] == plain != drawn[1]["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--presence-penalty", "3"], "presence_penalty 3.0 is not possible: it is -2 to 2"),
        (["--min-p", "2"], "min_p 2.0 is not possible"),
        (["--stop", ""], "stop ('',) is not possible"),
        (["--logprobs", "-1", "--json"], "logprobs -1 is not possible"),
        (["--regex", "a"], "no grammar can be kept"),  # this tokenizer joins words by spaces
    ],
)
def test_what_is_not_possible_is_said(bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["generate", str(bundle), *ASK, *arguments]) == 2
    assert said in capsys.readouterr().err
