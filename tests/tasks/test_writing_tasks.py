"""Tasks that write: the same text from an exported file as from transformers, whatever kind of model is in it."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from flatlm import AutoLoader
from flatlm.cli import main
from flatlm.errors import ConfigError, RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig
from tests.examples.cases import gpt2
from tests.examples.references import Case, make_reference

WORDS = ["<unk>", "<s>", "</s>", "the", "a", "cat", "dog", "sat", "ran", "on", "mat", "and", "big", ":", "title"]


def flagai_form(case: Case, directory: Path) -> object:
    """config.json, pytorch_model.bin and a tokenizer in a folder."""
    reference = make_reference(case, directory, decided=True)
    (directory / "model.safetensors").unlink()
    torch.save(reference.state_dict(), directory / "pytorch_model.bin")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
    return reference


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, AutoLoader, Path]:
    """A GPT-2 as FlagAI's users have one, and the bundle that was exported from it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    reference = flagai_form(gpt2.CASES[0], folder / "GPT2-base-ch")
    loader = AutoLoader("lm", model_name="GPT2-base-ch", model_dir=str(folder), device="cpu", class_num=2)
    file = folder / "gpt2.litertlm"
    report = loader.export(file, recipe="none", prefill_lengths=(8,), kv_cache_len=48)
    assert report.verification is not None and report.verification["passed"]
    return reference, loader, file


def greedy(reference: object, ids: list[int], count: int) -> list[int]:
    found = reference.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
    return found[: found.index(2)] if 2 in found else found


def test_lm(made: tuple[object, AutoLoader, Path]) -> None:
    reference, loader, file = made
    ids = loader.get_tokenizer().encode("the cat sat")
    with loader.runner(file, threads=1) as runner:
        found = runner.predict("the cat sat", max_new_tokens=12)
        assert runner("the cat sat", max_new_tokens=12) == found
        drawn = [runner.predict("the", max_new_tokens=5, gen_config=GenerationConfig(temperature=1.0, seed=3)).token_ids for _ in range(2)]
    assert found.prompt_token_ids == tuple(ids) == (3, 5, 7)
    assert list(found.token_ids) == greedy(reference, ids, 12)
    assert drawn[0] == drawn[1]
    model = loader.get_model()
    with torch.inference_mode():
        assert int(model(input_ids=ids)["logits"][0, -1].argmax()) == found.token_ids[0]


def test_another_task_is_another_prompt(made: tuple[object, AutoLoader, Path]) -> None:
    reference, loader, file = made
    other = AutoLoader("title-generation", loader.directory.name, loader.directory.parent)
    with other.runner(file, threads=1) as runner:
        found = runner.predict("the cat sat", prompt="{text} title :", max_new_tokens=6)
        with pytest.raises(RuntimeFileError, match=r"has no \{text\}"):
            runner.predict("the cat", prompt="title :")
    assert found.prompt_token_ids == (3, 5, 7, 14, 13)
    assert list(found.token_ids) == greedy(reference, list(found.prompt_token_ids), 6)


def test_what_does_not_fit_lists_what_does(made: tuple[object, AutoLoader, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, loader, file = made
    for task in ("masklm", "ner"):
        with pytest.raises(ConfigError, match=r"is of the kind decoder; it can do lm, seq2seq, title-generation, poetry"):
            AutoLoader(task, loader.directory.name, loader.directory.parent)
    assert main(["predict", str(file), "--text", "the", "--task", "embedding"]) == 2
    assert "it can do lm, seq2seq, title-generation, poetry" in capsys.readouterr().err


def test_predict_writes(made: tuple[object, AutoLoader, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, _, file = made
    assert main(["predict", str(file), "--text", "the cat sat", "--max-new-tokens", "4", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["predictions"][0]["prompt_token_ids"]) == ("lm", [3, 5, 7])
    assert len(found["predictions"][0]["token_ids"]) == 4
