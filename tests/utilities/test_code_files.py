"""Which files a user's file is made of, and that all of them are read anew once one has changed."""

from pathlib import Path

import pytest

from flatlm.authoring.user_code import load_file
from flatlm.utilities.code_files import imported_beside
from flatlm.utilities.reading import Reading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that imports a module, a package's, and, within a function, what another folder has too."""
    texts = {
        "model.py": "import json, sizes\nfrom parts.norm import eps\n\ndef build():\n    import late\n\nvalue = sizes.width, eps\n",
        "sizes.py": "width = 8\n",
        "late.py": "",
        "parts/__init__.py": "from . import scale\n",
        "parts/norm.py": "from .scale import eps\n",
        "parts/scale.py": "eps = 1\n",
        "parts/unused.py": "",
        "other.py": "",
    }
    (tmp_path / "parts").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "model.py"


def test_what_a_file_imports_from_beside_it(file: Path) -> None:
    found = [str(each.relative_to(file.parent)) for each in imported_beside(file)]
    assert found == ["late.py", "parts/__init__.py", "parts/norm.py", "parts/scale.py", "sizes.py"]


def test_what_a_packages_file_imports_of_its_package(tmp_path: Path) -> None:
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    texts = {
        "mine/__init__.py": "",
        "mine/sizes.py": "from . import more\n",
        "mine/more.py": "",
        "mine/unused.py": "",
        "mine/deep/__init__.py": "",
        "mine/deep/model.py": "import json, elsewhere\nfrom mine.sizes import width\nfrom .. import sizes\n",
        "elsewhere.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = imported_beside(tmp_path / "mine/deep/model.py", package="mine.deep")
    assert [str(each.relative_to(tmp_path)) for each in found] == ["mine/__init__.py", "mine/more.py", "mine/sizes.py"]


def test_a_file_is_another_once_what_it_imports_has_changed(file: Path) -> None:
    readings = [Reading(custom=file), Reading(module_map=file)]
    before = [reading.fingerprint() for reading in readings]
    first = load_file(file)
    assert first.value == (8, 1) and load_file(file) is first
    (file.parent / "unheard.py").write_text("")
    assert [reading.fingerprint() for reading in readings] == before and load_file(file) is first
    (file.parent / "parts" / "scale.py").write_text("eps = 2345\n")
    assert all(reading.fingerprint() != old for reading, old in zip(readings, before, strict=True))
    assert load_file(file).value == (8, 2345)


def test_two_folders_may_have_a_module_of_one_name(file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert load_file(file).value == (8, 1)
    other = tmp_path_factory.mktemp("other")
    (other / "sizes.py").write_text("width = 16\n")
    (other / "model.py").write_text("import sizes\nvalue = sizes.width\n")
    assert load_file(other / "model.py").value == 16
