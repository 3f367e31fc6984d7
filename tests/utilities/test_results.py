import pytest

from flatlm.errors import RuntimeFileError
from flatlm.utilities.results import FileResults, read_comparisons, read_results, save_result


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
