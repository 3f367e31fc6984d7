"""CPM's kind of GPT-2: FlagAI's config.json and weights, a SentencePiece model over cut words; against transformers' GPT-2."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

from flatlm import cli
from flatlm.errors import ConfigError
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import build_config, find_builder
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.examples.cases.gpt2 import GPT2
from tests.examples.references import make_reference
from tests.examples.test_parity import TOLERANCE, eager_error

CORPUS = ["北京是中国的首都。", "今天天气很好,我们去公园玩。", "清华大学是一所著名的大学。", "人工智能将改变世界。"] * 30
FLAGAI = {
    "activation_function": "gelu_new",
    "n_head": 4,
    "n_embd": 64,
    "n_layer": 3,
    "n_positions": 64,
    "vocab_size": 128,
    "n_inner": None,
    "checkpoint_activations": False,
    "hidden_size": 64,
    "do_layer_norm_before": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MATRICES = ("c_attn.weight", "c_fc.weight", "c_proj.weight")


def flagai_checkpoint(directory: Path, *, linears: bool) -> transformers.GPT2LMHeadModel:
    """`linears`: its matrices as FlagAI's own layers have them, [out, in]; else as transformers' do."""
    reference = make_reference(GPT2.case("chinese"), directory)
    for path in directory.iterdir():
        path.unlink()
    state = reference.state_dict()
    turned = {name: value.T.contiguous() if linears and name.endswith(MATRICES) else value for name, value in state.items()}
    torch.save({"module": turned}, directory / "pytorch_model.bin")
    (directory / "config.json").write_text(json.dumps(FLAGAI))
    return reference


@pytest.mark.parametrize("linears", [False, True])
def test_flagais_checkpoint_is_transformers_model(tmp_path: Path, linears: bool) -> None:
    assert eager_error(flagai_checkpoint(tmp_path, linears=linears), tmp_path) <= TOLERANCE


def test_which_configurations_are_meant(tmp_path: Path) -> None:
    assert find_builder(ConfigReader(FLAGAI, "config.json")).family == "gpt2"
    with pytest.raises(ConfigError, match="'gptj' is not supported"):
        find_builder(ConfigReader({**FLAGAI, "model_type": "gptj"}, "config.json"))
    for key in ("do_layer_norm_before", "hidden_size"):
        (tmp_path / "config.json").write_text(json.dumps(FLAGAI | {key: False}))
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(ConfigError, match=key):
            build_config(tmp_path)


def test_it_writes_chinese_as_the_reference_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, stream = flagai_checkpoint(tmp_path, linears=True), io.BytesIO()
    options = {"vocab_size": 120, "hard_vocab_limit": False, "character_coverage": 1.0, "user_defined_symbols": ["▂", "▃", "<eod>"]}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=stream, minloglevel=2, **options)
    (tmp_path / "chinese_vocab.model").write_bytes(stream.getvalue())
    (tmp_path / "vocab.json").write_text("{}")  # a list of the pieces, which is not read
    export(ExportRequest(tmp_path, tmp_path / "cpm.tflite", get_recipe("none"), (8,), 48))
    arguments = ["generate", str(tmp_path / "cpm.tflite"), "--tokenizer", str(tmp_path), "--prompt", "今天天气", "--max-new-tokens", "12"]
    assert cli.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.load(tmp_path)
    assert said["prompt_token_ids"] == tokenizer.encode("今天天气") and len(said["token_ids"]) > 2
    expected = list(said["prompt_token_ids"])
    with torch.inference_mode():
        for _ in said["token_ids"]:
            expected.append(int(reference(torch.tensor([expected])).logits[0, -1].argmax()))
    assert said["prompt_token_ids"] + said["token_ids"] == expected
    assert tokenizer.decode(expected) == "今天天气" + said["text"]
    assert build_model(tmp_path).config.vocab_size == 128
