"""Calibration text: rows of a document each, no token twice or lost, and clear words for what is no such text."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from flatlm.errors import TextError, TokenizerError
from flatlm.utilities.calibration import text as module
from flatlm.utilities.calibration.text import LEAST_TOKENS, LONGEST_ROW, CalibrationText, read_text
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

ASSETS = Path(module.__file__).parents[2] / "assets"
DEMO, STORIES = ASSETS / "demo_model", ASSETS / "demo_text" / "held_out.json"
VOCAB = 1024


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(DEMO)


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return json.loads(STORIES.read_text())


def write(path: Path, documents: list[str]) -> Path:
    path.write_text(json.dumps(documents))
    return path


def read(path: Path, *, positions: int = 512, most: int = module.MOST_TOKENS, vocab: int = VOCAB) -> CalibrationText:
    return read_text(path, DEMO, vocab_size=vocab, max_positions=positions, most=most)


def rows_of(text: CalibrationText) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(text.tokens, text.lengths.tolist(), strict=True)]


def test_a_row_is_a_piece_of_one_document_and_begins_as_it_does(tmp_path: Path, stories: list[str], tokenizer: Tokenizer) -> None:
    found = rows_of(read(write(tmp_path / "a.json", stories[:8]), positions=64))
    assert all(row[0] == tokenizer.bos_id for row in found)
    assert max(map(len, found)) == 64
    rest = iter(found)
    for story in stories[:8]:
        ids, body = tokenizer.encode(story), list[int]()
        while len(body) < len(ids) - 1:  # BOS is written before each piece
            body += next(rest)[1:]
        assert body == ids[1:]
    assert next(rest, None) is None


def test_what_is_padded_does_not_count(tmp_path: Path, stories: list[str]) -> None:
    text = read(write(tmp_path / "a.json", stories[:8]))
    assert text.tokens.dtype == torch.int32
    assert text.tokens.shape == (8, int(text.lengths.max()))
    assert text.valid.shape == text.tokens.shape
    assert torch.equal(text.valid.sum(1), text.lengths)
    assert text.count() == int(text.lengths.sum()) == int(text.valid.sum())
    assert not text.tokens[~text.valid].any()


def test_rows_are_no_longer_than_the_model_knows_positions(tmp_path: Path, stories: list[str]) -> None:
    long = write(tmp_path / "a.json", [" ".join(stories[:20])])
    assert read(long, positions=16).tokens.shape[1] == 16
    assert read(long, positions=10**6).tokens.shape[1] == LONGEST_ROW


def test_no_more_is_read_than_is_of_use(tmp_path: Path, stories: list[str]) -> None:
    path = write(tmp_path / "a.json", stories)
    text = read(path, most=1000)
    assert 1000 <= text.count() < 1000 + LONGEST_ROW
    assert rows_of(read(path))[: len(text.lengths)] == rows_of(text)
    path = write(tmp_path / "b.json", [" ".join(stories)])
    assert 1000 <= read(path, most=1000).count() < 1000 + LONGEST_ROW


def test_a_tokenizer_without_a_beginning(tmp_path: Path, stories: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(3, 800)) * 2
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: ids)
    found = rows_of(read(write(tmp_path / "a.json", stories[:1]), positions=100))
    assert [token for row in found for token in row] == ids
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: ids[:701])
    found = rows_of(read(write(tmp_path / "a.json", stories[:1]), positions=100))
    assert [len(row) for row in found] == [100] * 7  # one token alone foretells nothing


def test_a_text_file_is_one_document_and_lines_are_documents(tmp_path: Path, stories: list[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(stories[:8]))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in stories[:8]))
    write(tmp_path / "a.json", stories[:8])
    assert rows_of(read(tmp_path / "a.jsonl")) == rows_of(read(tmp_path / "a.json"))
    assert read(tmp_path / "a.txt").count() > LEAST_TOKENS


def test_too_little_text(tmp_path: Path, stories: list[str]) -> None:
    with pytest.raises(TextError, match=rf"a\.json: \d+ tokens are too few .* at least {LEAST_TOKENS}"):
        read(write(tmp_path / "a.json", stories[:1]))


def test_a_tokenizer_of_another_model(tmp_path: Path, stories: list[str]) -> None:
    with pytest.raises(TextError, match=r"wrong tokenizer: it gives token .* vocabulary of 100"):
        read(write(tmp_path / "a.json", stories[:8]), vocab=100)


def test_no_tokenizer(tmp_path: Path, stories: list[str]) -> None:
    shutil.copy(DEMO / "config.json", tmp_path)
    with pytest.raises(TokenizerError):
        read_text(write(tmp_path / "a.json", stories[:8]), tmp_path, vocab_size=VOCAB, max_positions=512)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.txt", None, "missing.txt cannot be read"),
        ("empty.txt", b"", "the text is empty"),
        ("empty.json", b"[]", "has no documents"),
        ("spaces.jsonl", b"\n \n", "has no documents"),
        ("bad.json", b"[", "is not JSON"),
        ("bad.jsonl", b'"fine"\n{"txt": 1}', "line 2: must be a string"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
        ("text.md", b"hello", "the suffix says what it is"),
    ],
)
def test_what_is_no_text(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=words):
        read(tmp_path / name)
