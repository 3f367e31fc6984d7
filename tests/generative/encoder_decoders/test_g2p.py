"""A real trained BART, from spelling to phonemes: 200 words through exported files, the library and the command line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flatlm.cli import main
from flatlm.generative.encoder_decoders.generate import generate
from flatlm.generative.encoder_decoders.runner import EncoderDecoderRunner
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.verify import verify
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

WORDS = 200
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def g2p(shared: Path) -> Path:
    return shared / "checkpoints" / "bart_g2p_us"


@pytest.fixture(scope="module")
def files(g2p: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By recipe; one compilation."""
    folder = tmp_path_factory.mktemp("g2p")
    paths = {recipe: folder / f"{recipe}.tflite" for recipe in ("none", "dynamic_int8")}
    for recipe, path in paths.items():
        export(ExportRequest(g2p, path, get_recipe(recipe), (16, 64)))
    return paths


@pytest.fixture(scope="module")
def words(shared: Path) -> list[str]:
    """So many different ones, of two letters and more, spread evenly over the text's alphabet."""
    text = (shared / "text" / "tinyshakespeare.txt").read_text()
    found = sorted(set(re.findall(r"\b[a-z]{2,15}\b", text)))
    return found[:: len(found) // WORDS][:WORDS]


@pytest.fixture(scope="module")
def expected(g2p: Path, words: list[str]) -> dict[str, list[int]]:
    """What transformers' own loop writes about each word, after the token it begins with."""
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(g2p, dtype=torch.float32).eval()
    tokenizer = Tokenizer.load(g2p)
    return {word: model.generate(torch.tensor([tokenizer.encode(word)]), max_new_tokens=NEW_TOKENS)[0, 1:].tolist() for word in words}


def written(file: Path, g2p: Path, words: list[str]) -> dict[str, str]:
    tokenizer, phonemes = Tokenizer.load(g2p), Tokenizer.load(g2p / "tokenizer_phonemes.json")
    with EncoderDecoderRunner.open(file, threads=1) as runner:
        config = GenerationConfig(max_new_tokens=NEW_TOKENS)
        return {word: generate(runner, phonemes, tokenizer.encode(word), config).text for word in words}


def test_float32_writes_transformers_phonemes_word_for_word(
    g2p: Path, files: dict[str, Path], words: list[str], expected: dict[str, list[int]]
) -> None:
    phonemes = Tokenizer.load(g2p / "tokenizer_phonemes.json")
    assert len(words) == WORDS
    got = written(files["none"], g2p, words)
    assert got == {word: phonemes.decode(ids) for word, ids in expected.items()}
    assert len(set(got.values())) > 190  # and they are words, not one word


def test_int8_writes_98_of_100_alike(g2p: Path, files: dict[str, Path], words: list[str], expected: dict[str, list[int]]) -> None:
    phonemes = Tokenizer.load(g2p / "tokenizer_phonemes.json")
    got = written(files["dynamic_int8"], g2p, words)
    same = sum(got[word] == phonemes.decode(ids) for word, ids in expected.items())
    print(f"int8: {same} of {WORDS} words as transformers writes them")
    assert same >= 0.98 * WORDS


def test_both_files_prove_themselves(g2p: Path, files: dict[str, Path]) -> None:
    for against in ("transformers", "eager"):
        exact = verify(files["none"], g2p, tokens=100, against=against)
        assert exact.passed and exact.against == against
        assert exact.max_abs_error <= 1e-4
    assert verify(files["dynamic_int8"], g2p, prompts=["hello", "thorough"], tokens=100).passed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_caches_cost_no_word(dtype: str, g2p: Path, words: list[str], expected: dict[str, list[int]], tmp_path: Path) -> None:
    """The caches of what is written; what was read is kept in float32."""
    file = tmp_path / "small.tflite"
    export(ExportRequest(g2p, file, get_recipe("none"), kv_cache_dtype=dtype))
    assert verify(file, g2p, tokens=100).passed
    phonemes, got = Tokenizer.load(g2p / "tokenizer_phonemes.json"), written(file, g2p, words)
    assert sum(got[word] == phonemes.decode(ids) for word, ids in expected.items()) >= 0.98 * WORDS
    with EncoderDecoderRunner.open(file, threads=1) as runner:
        assert runner.file.decode.caches["kv_cache_k_0"].dtype == dtype
        assert runner.file.cross["cross_k_0"].dtype == "float32"


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_the_command_line_writes_them_in_the_alphabet_it_is_given(
    g2p: Path, files: dict[str, Path], expected: dict[str, list[int]], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, word = files["none"], words[100]
    tokenizer, phonemes = Tokenizer.load(g2p), g2p / "tokenizer_phonemes.json"
    ids = [token for token in expected[word] if token != 2]
    base = ("generate", file, "--prompt", word, "--tokenizer", g2p)
    code, out, err = run(*base, "--output-tokenizer", phonemes, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and not err
    assert found["text"] == Tokenizer.load(phonemes).decode(ids)
    assert found["token_ids"] == ids
    assert found["prompt_token_ids"] == tokenizer.encode(word)
    assert found["finish_reason"] == "eos"
    code, out, _ = run(*base, "--output-tokenizer", phonemes, capsys=capsys)
    assert (code, out) == (0, found["text"] + "\n")  # the prompt is another text, and not repeated
    code, out, err = run(*base, capsys=capsys)
    assert (code, out) == (0, tokenizer.decode(ids) + "\n")
    assert "tokenizer_phonemes.json: --output-tokenizer FILE writes in it" in err


def test_a_text_that_is_as_long_as_it_may_be_ends_as_the_model_wants(g2p: Path, files: dict[str, Path], words: list[str]) -> None:
    """bart_g2p_us forces its last token to be </s>: 3 tokens are 2 and that one, and the text did not end by itself."""
    tokenizer = Tokenizer.load(g2p)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(g2p, dtype=torch.float32).eval()
    ids = tokenizer.encode("thorough")
    with EncoderDecoderRunner.open(files["none"], threads=1) as runner:
        short = generate(runner, tokenizer, ids, GenerationConfig(max_new_tokens=3))
        assert [*short.token_ids, 2] == model.generate(torch.tensor([ids]), max_new_tokens=3)[0, 1:].tolist()
        assert short.finish_reason == "length"
        assert generate(runner, tokenizer, ids, GenerationConfig(max_new_tokens=0)).token_ids == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("benchmark", "FILE"), "holds an encoder-decoder: this runs decoders' files only"),
        (("evaluate", "FILE", "--text", "TEXT", "--tokenizer", "DIR"), "holds an encoder-decoder: this runs decoders' files only"),
        (("export", "DIR", "-o", "x.litertlm"), "LiteRT-LM runs no encoder with a decoder"),
        (("export", "DIR", "-o", "x.tflite", "--prefill", "65"), "--prefill 65 is longer than the 64 positions of the model's encoder"),
        (("export", "DIR", "-o", "x.tflite", "--kv-cache-len", "65"), "--kv-cache-len 65 is longer than the 64 positions"),
        (("export", "DIR", "-o", "x.tflite", "--prefill-logits"), "--prefill-logits is for decoders"),
        (("export", "DIR", "-o", "x.tflite", "--recipe", "static_int8", "--calibration", "TEXT"), "'static_int8' calibrates"),
        (
            ("tune", "DIR", "-o", "x.tflite", "--bits", "4", "--calibration", "TEXT"),
            "a search tries the blocks of a decoder of FlatLM's own, which bart is not",
        ),
        (("generate", "FILE", "--prompt", "a" * 70, "--tokenizer", "DIR"), "72 tokens do not fit its encoder, which reads 64"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: tuple[str, ...],
    message: str,
    g2p: Path,
    files: dict[str, Path],
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"FILE": files["none"], "DIR": g2p, "TEXT": shared / "text" / "tinystories_stories.json"}
    code, out, err = run(*(places.get(argument, argument) for argument in arguments), capsys=capsys)
    assert code == 2 and not out
    assert message in err
    assert len(err.strip().splitlines()[-1:]) == 1 and "Traceback" not in err


def test_inspect_and_check_know_it(g2p: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("inspect", files["none"], "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert [signature["name"] for signature in found["signatures"]] == ["encode_16", "encode", "decode"]
    facts = {"kind": "encoder-decoder", "encoder_len": 64, "kv_cache_len": 64, "family": "bart"}
    tokens = {"decoder_start_token_id": 1, "eos_token_ids": [2], "pad_token_id": 0, "forced_bos_token_id": None, "forced_eos_token_id": 2}
    assert facts | tokens == {key: found["manifest"][key] for key in facts | tokens}
    code, out, _ = run("check", g2p, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert (found["family"], found["layers"], found["max_positions"], found["kind"]) == ("bart", 2, 64, "encoder-decoder")
    assert not found["ignored_tensors"]


def test_a_word_may_be_written_about_twice_and_never_before_it_is_read(g2p: Path, files: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(g2p)
    with EncoderDecoderRunner.open(files["none"], threads=1) as runner:
        with pytest.raises(Exception, match="nothing was read yet"):
            runner.step(1)
        with pytest.raises(Exception, match="has no tokens"):
            runner.read([])
        with pytest.raises(Exception, match="token 63 is outside its vocabulary of 63"):
            runner.read([63])
        runner.read(tokenizer.encode("read"))
        first = [runner.step(token) for token in (1, 30, 40)]
        runner.reset()
        assert runner.position == 0
        again = [runner.step(token) for token in (1, 30, 40)]
        assert all((a == b).all() for a, b in zip(first, again, strict=True))
        runner.prefill([5] * 61)
        with pytest.raises(Exception, match="1 tokens do not fit its decoder's context of 64, of which 64 are used"):
            runner.step(1)


def test_a_damaged_manifest_is_seen(files: dict[str, Path], tmp_path: Path) -> None:
    content = files["none"].read_bytes()
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(content.replace(b'"decoder_start_token_id"', b'"decoder_start_token_ix"'))
    with pytest.raises(Exception, match="its manifest has no decoder_start_token_id"):
        EncoderDecoderRunner.open(damaged)


def test_keys_that_change_the_model_are_not_overlooked(g2p: Path, tmp_path: Path) -> None:
    from flatlm.utilities.configs.registry import build_config

    for key, value, problem in (
        ("normalize_before", True, "normalize_before = true is not supported; false is"),
        ("num_hidden_layers", 2, "num_hidden_layers = 2 is not supported; 1 is"),
        ("unheard_of", 3, "keys that FlatLM does not know.*unheard_of = 3"),
    ):
        folder = tmp_path / key
        shutil.copytree(g2p, folder)
        config = json.loads((g2p / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(Exception, match=problem):
            build_config(folder)
