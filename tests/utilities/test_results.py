import json
from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.utilities.results import FileResults, read_comparisons, read_results, save_evaluation, save_result


def test_what_was_found_out_lies_beside_the_file(tmp_path):
    file = tmp_path / "deep" / "story.v2.tflite"
    file.parent.mkdir()
    assert save_result(file, "benchmark", [{"threads": 2}]) == file.parent / "story.v2.tflite.benchmark.json"
    save_result(file, "manifest", {"recipe": "none"})
    save_result(tmp_path / "other.litertlm", "evaluation", {"perplexity": 2.0})
    (tmp_path / "notes.json").write_text("not even JSON")
    assert read_results(tmp_path) == [
        FileResults(file, {"benchmark": [{"threads": 2}], "manifest": {"recipe": "none"}}),
        FileResults(tmp_path / "other.litertlm", {"evaluation": {"perplexity": 2.0}}),
    ]


def test_comparisons_lie_beside_none(tmp_path):
    (tmp_path / "a_b.comparison.json").write_text('{"rounds": 3}')
    assert read_results(tmp_path) == []
    assert list(read_comparisons(tmp_path)) == [{"rounds": 3}]


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "x.tflite.manifest.json").write_text('{"a": ')
    with pytest.raises(RuntimeFileError, match=r"x\.tflite\.manifest\.json is not a result that can be read"):
        read_results(tmp_path)


def tasks(lm_eval: str = "1", chat_template: bool = False, requests: int = 4, **scores: float) -> dict[str, Any]:
    shots = dict.fromkeys(scores, 0)
    runs = {"shots": shots, "requests": requests, "lm_eval": lm_eval, "chat_template": chat_template}
    return {"tasks": {name: {"acc": score} for name, score in scores.items()}, "task_runs": runs}


def test_an_evaluation_of_text_and_one_of_tasks_stand_together(tmp_path: Path) -> None:
    file = tmp_path / "story.tflite"
    file.write_bytes(b"a model")

    def saved(found: dict[str, Any]) -> dict[str, Any]:
        written = json.loads(save_evaluation(file, found).read_text())
        return {key: value for key, value in written.items() if key != "file_sha256"}

    text = {"perplexity": 2.0, "mean_kl": 0.1}
    assert saved(text) == text
    assert saved(tasks(a=0.5)) == text | tasks(a=0.5)
    assert saved({"perplexity": 3.0}) == {"perplexity": 3.0} | tasks(a=0.5), "no KL of another text beside it"
    assert saved(tasks(b=0.25, requests=9)) == {"perplexity": 3.0} | tasks(a=0.5, b=0.25, requests=9)
    assert saved(tasks(a=0.75)) == {"perplexity": 3.0} | tasks(a=0.75, b=0.25)
    assert saved(tasks(c=0.1, chat_template=True)) == {"perplexity": 3.0} | tasks(c=0.1, chat_template=True)
    assert saved(tasks(d=0.1, lm_eval="2")) == {"perplexity": 3.0} | tasks(d=0.1, lm_eval="2")
    assert saved(text | tasks(e=1.0, lm_eval="2")) == text | tasks(d=0.1, e=1.0, lm_eval="2")
    file.write_bytes(b"another model")
    assert saved(tasks(a=0.5)) == tasks(a=0.5), "what was found of another file is no figure of this one"
    (tmp_path / "story.tflite.evaluation.json").write_text("{")
    assert saved(text) == text
