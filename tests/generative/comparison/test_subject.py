from pathlib import Path

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.comparison.subject import name_subjects


@pytest.fixture
def make(tmp_path):
    def made(*names: str) -> list[Path]:
        files = [tmp_path / name for name in names]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return files

    return made


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.tflite", "b.litertlm", "c.gguf"], ["a.tflite", "b.litertlm", "c.gguf"]),
        (["x/m.tflite", "y/m.tflite", "y/n.tflite"], ["x/m.tflite", "y/m.tflite", "n.tflite"]),
        (["1/x/m.tflite", "2/x/m.tflite"], ["1/x/m.tflite", "2/x/m.tflite"]),
        (["m.tflite", "m.tflite", "m.tflite"], ["m.tflite", "m.tflite #2", "m.tflite #3"]),
        (["x/m.tflite", "y/m.tflite", "x/m.tflite"], ["x/m.tflite", "y/m.tflite", "x/m.tflite #2"]),
    ],
)
def test_names_tell_files_apart(make, files, names):
    subjects = name_subjects(make(*files))
    assert [subject.name for subject in subjects] == names
    assert [subject.gguf for subject in subjects] == [name.endswith(".gguf") for name in files]


def test_the_same_file_by_another_path_is_the_same(make, tmp_path):
    (file,) = make("m.tflite")
    (tmp_path / "link.tflite").symlink_to(file)
    assert [subject.name for subject in name_subjects([file, tmp_path / "link.tflite"])] == ["m.tflite", "m.tflite #2"]


def test_what_is_no_subject(make, tmp_path):
    with pytest.raises(RuntimeFileError, match=r"m\.onnx: only \.tflite, \.litertlm, \.gguf can be compared"):
        name_subjects(make("m.onnx"))
    with pytest.raises(RuntimeFileError, match=r"absent\.tflite cannot be read: no such file"):
        name_subjects([tmp_path / "absent.tflite"])
