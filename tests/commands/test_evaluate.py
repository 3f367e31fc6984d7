"""`flatlm evaluate`, through the command line, on a tiny checkpoint."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatlm.cli import main
from flatlm.commands import evaluate as module
from flatlm.generative.harness.tasks import evaluate_tasks
from flatlm.generative.layer_errors import layer_errors
from flatlm.utilities.documents import encode_document
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.commands.conftest import run_json
from tests.harness_tasks import copy_tasks, offline_harness

TEXT = "the cat sat on the mat and the big dog ran on " * 8


@pytest.fixture(scope="module")
def scoring(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scoring") / "model.tflite"
    options = ["--recipe", "none", "--prefill", "16", "--kv-cache-len", "48", "--no-verify", "--prefill-logits"]
    assert main(["export", str(checkpoint), "-o", str(path), *options]) == 0
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of small tasks, where the harness is there to run them."""
    with offline_harness(tmp_path_factory.mktemp("home")):
        yield copy_tasks(tmp_path_factory.mktemp("tasks"))


def test_text_against_the_checkpoint(scoring: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    found = run_json(capsys, "evaluate", str(scoring), "--text", str(text), "--checkpoint", str(checkpoint), "--save")
    assert found["tokens"] == 12 * 8 - 1 and found["stride"] == 24 and found["context"] == 48  # plain text: half the context
    assert found["perplexity"] > 1 and 0 <= found["mean_kl"] < 1e-8 and found["top1_agreement"] == found["top5_agreement"] == 1
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-5) and found["greedy"]["equal_to_the_end"] == 1
    saved = scoring.with_name("model.tflite.evaluation.json")
    assert {key: value for key, value in json.loads(saved.read_text()).items() if key != "file_sha256"} == found
    saved.unlink()
    assert main(["evaluate", str(scoring), "--text", str(text), "--checkpoint", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "perplexity ratio 1.0000" in out and "95 tokens of 1 documents; context 48, stride 24" in out
    assert "95 tokens were compared with what was kept of the reference" in out
    documents = tmp_path / "text.json"
    documents.write_text(json.dumps([TEXT, "the cat"]))
    options = ("--text", str(documents), "--tokenizer", str(checkpoint))
    found = run_json(capsys, "evaluate", str(scoring), *options)
    assert (found["tokens"], found["cut_documents"]) == (47 + 1, 1) and "stride" not in found
    assert main(["evaluate", str(scoring), *options]) == 0
    assert "1 documents were cut at 48 tokens" in capsys.readouterr().out


def test_without_logits_from_prefill(bundle: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    assert main(["evaluate", str(bundle), "--text", str(tmp_path / "text.txt")]) == 0
    assert "--prefill-logits" in capsys.readouterr().err


def test_a_checkpoint_alone_is_compared_on_stories(
    scoring: Path, checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.OWN_TEXT.exists()
    (tmp_path / "own.json").write_text('["the cat sat on the mat"]')
    monkeypatch.setattr(module, "OWN_TEXT", tmp_path / "own.json")
    assert run_json(capsys, "evaluate", str(scoring), "--checkpoint", str(checkpoint))["tokens"] == 5


def test_tasks_need_no_text(scoring: Path, checkpoint: Path, tasks: Path, tmp_path: Path, capsys) -> None:
    named = ("--tasks", "tiny_choice, tiny_cloze", "--include-path", str(tasks), "--limit", "3", "--num-fewshot", "0")
    options = (*named, "--tokenizer", str(checkpoint), "--work", str(tmp_path / "work"))
    saved = scoring.with_name("model.tflite.evaluation.json")
    found = run_json(capsys, "evaluate", str(scoring), *options, "--save")
    names = ["tiny_choice", "tiny_cloze"]
    expected = evaluate_tasks(scoring, names, tokenizer=checkpoint, limit=3, num_fewshot=0, include_path=tasks)
    assert found == json.loads(json.dumps(expected.to_evaluation())), "no text was read"
    assert list(found["tasks"]) == names and set(found["tasks"]["tiny_choice"]) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    runs = found["task_runs"]
    assert (runs["samples"], runs["shots"], runs["requests"]) == (dict.fromkeys(names, 3), dict.fromkeys(names, 0), 3 * 4 + 3)
    assert list((tmp_path / "work").iterdir()) == [], "nothing stays of what was saved as it went"

    text = tmp_path / "text.json"
    text.write_text(json.dumps([TEXT]))
    both = run_json(capsys, "evaluate", str(scoring), "--text", str(text), *named, "--tokenizer", str(checkpoint))
    assert both["tokens"] == 47 and both["tasks"] == found["tasks"]
    run_json(capsys, "evaluate", str(scoring), "--text", str(text), "--tokenizer", str(checkpoint), "--save")
    kept = json.loads(saved.read_text())
    saved.unlink()
    assert kept == {"file_sha256": kept["file_sha256"], **both}, "what was measured later stands beside it"


def test_tasks_as_a_table(bundle: Path, tasks: Path, capsys) -> None:
    """The bundle has its own tokenizer, and no logits from prefill."""
    capsys.readouterr()
    assert main(["evaluate", str(bundle), "--tasks", "tiny_cloze", "--include-path", str(tasks), "--limit", "0.5"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["task", "metric", "score", "standard", "error", "examples", "questions"]
    assert [line[:2] for line in lines[1:3]] == [["tiny_cloze", "perplexity"], ["tiny_cloze", "acc"]]
    assert lines[2][-2:] == ["0", "3"], "half of the six"
    assert lines[3][0] == "lm_eval" and lines[3][2:] == ["3", "requests"]
    assert err.count("--prefill-logits") == 1 == len(err.splitlines())


def test_a_chat_template_is_asked_for(scoring: Path, checkpoint: Path, tasks: Path, tmp_path: Path, capsys) -> None:
    options = ["--tasks", "tiny_cloze", "--include-path", str(tasks), "--limit", "1", "--apply-chat-template", "--tokenizer"]
    assert main(["evaluate", str(scoring), *options, str(checkpoint)]) == 2
    assert "comes with no chat template" in capsys.readouterr().err
    talker = tmp_path / "talker"
    shutil.copytree(checkpoint, talker)
    config = json.loads((talker / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}the {{m['content']}}{% endfor %}"
    (talker / "tokenizer_config.json").write_text(json.dumps(config))
    assert run_json(capsys, "evaluate", str(scoring), *options, str(talker))["task_runs"]["chat_template"] is True


def test_the_checkpoints_tokenizer_does_for_tasks_and_what_is_known_is_kept(
    scoring: Path, checkpoint: Path, tasks: Path, tmp_path: Path, capsys
) -> None:
    """The second task's data cannot be had, which is found when its turn comes."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    options = ["--text", str(tmp_path / "text.txt"), "--checkpoint", str(checkpoint), "--include-path", str(tasks), "--save"]
    found = run_json(capsys, "evaluate", str(scoring), *options, "--tasks", "tiny_cloze")
    assert found["tokens"] == 5 and "acc" in found["tasks"]["tiny_cloze"]
    saved = scoring.with_name("model.tflite.evaluation.json")
    saved.unlink()
    assert main(["evaluate", str(scoring), *options, "--tasks", "tiny_far"]) == 2
    out, err = capsys.readouterr()
    assert "5 tokens of 1 documents" in out and "tiny_far: the questions cannot be read" in err
    assert json.loads(saved.read_text())["tokens"] == 5
    saved.unlink()
    options[options.index(str(tasks))] = "nowhere"
    assert main(["evaluate", str(scoring), *options, "--tasks", "tiny_cloze"]) == 2
    assert capsys.readouterr().out == "" and not saved.exists(), "that is found before any work"


def test_the_error_of_each_layer(scoring: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.json"
    text.write_text(json.dumps(["the cat sat on", TEXT]))
    options = ("--text", str(text), "--checkpoint", str(checkpoint), "--layers")
    found = run_json(capsys, "evaluate", str(scoring), *options, "--save")
    tokenizer = Tokenizer.load(checkpoint)
    ids = [i for document in ["the cat sat on", TEXT] for i in encode_document(document, tokenizer, tokenizer.vocab_size)]
    expected = json.loads(json.dumps(layer_errors(scoring, checkpoint, ids[:48]).to_dict()))
    assert found["layers"] == expected and expected["tokens"] == 48 and found["tokens"] == 3 + 47
    layers, evaluation = (scoring.with_name(f"model.tflite.{kind}.json") for kind in ("layers", "evaluation"))
    assert json.loads(layers.read_text()) == expected and "layers" not in json.loads(evaluation.read_text())
    layers.unlink()
    evaluation.unlink()
    assert main(["evaluate", str(scoring), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines[next(i for i, line in enumerate(lines) if "error of each layer over 48 tokens" in line) + 1 :]]
    assert table[0] == ["layer", "keys", "values"] and table[-1] == ["logits", f"{expected['logits_error']:.3g}"]
    assert table[1:-1] == [[str(layer), f"{keys:.3g}", f"{values:.3g}"] for layer, keys, values in expected["layers"]]
    assert not scoring.with_name("model.tflite.layers.json").exists()


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "x", "nan", "inf"])
def test_a_limit_that_is_none(scoring: Path, capsys, limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(scoring), "--tasks", "tiny_cloze", f"--limit={limit}"])
    assert ended.value.code == 2 and f"'{limit}' is neither a whole number of questions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "3", "--text", "{text}"), "--limit is about tasks: name them with --tasks"),
        (("--num-fewshot", "0", "--text", "{text}"), "--num-fewshot is about tasks"),
        (("--include-path", "tasks", "--text", "{text}"), "--include-path is about tasks"),
        (("--apply-chat-template", "--text", "{text}"), "--apply-chat-template is about tasks"),
        (("--tasks", ","), "no task was named"),
        (("--layers", "--text", "{text}"), "so give --checkpoint DIR too"),
        ((), "there is nothing to evaluate: give --text FILE, --checkpoint DIR or --tasks NAMES"),
        (("--text", "none.txt", "--tokenizer", "{checkpoint}"), "none.txt cannot be read"),
        (("--text", "{text}"), "give its directory with --tokenizer DIR"),
        (("--text", "{text}", "--tokenizer", "{other}"), "is the wrong tokenizer: it gives other ids than the one that"),
        (("--text", "{text}", "--checkpoint", "{checkpoint}", "--context", "4096"), "--kv-cache-len"),
    ],
)
def test_bad_input_is_one_line(scoring: Path, checkpoint: Path, tmp_path: Path, capsys, options: tuple[str, ...], message: str) -> None:
    (tmp_path / "text.txt").write_text("the cat sat")
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<unk>"], vocabulary["the"] = vocabulary["the"], vocabulary["<unk>"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    places = {"checkpoint": str(checkpoint), "text": str(tmp_path / "text.txt"), "other": str(other)}
    assert main(["evaluate", str(scoring), *(option.format(**places) for option in options)]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1
