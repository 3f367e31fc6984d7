"""What authors' code may do wrong, or raise, is one line of theirs; and their code is part of what a kept export is known by."""

import sys
from pathlib import Path

import pytest

import flatlm
from flatlm.authoring.module_map import MODULE_MAP
from flatlm.convert.worker import CompilerProcess
from flatlm.errors import ExportError
from flatlm.generative.export_cache import export_key
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.reading import Reading
from tests.authoring.checkpoints import LLAMA_MAP, llama
from tests.authoring.llama_modules import LlamaForCausalLM
from tests.tasks.made import save_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    llama(directory)
    save_tokenizer(directory)
    return directory


def rewritten(folder: Path, *changes: tuple[str, str]) -> Path:
    """The Llama of lmdeploy's builders, with what stands in it changed."""
    text = LLAMA_MAP.read_text("utf-8")
    for right, other in changes:
        assert right in text
        text = text.replace(right, other)
    path = folder / "map.py"
    path.write_text(text, "utf-8")
    return path


def test_exports_are_kept_for_the_code_that_made_them(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ExportRequest(checkpoint, tmp_path / "a.tflite")
    keys = [export_key(request)]
    MODULE_MAP.update({"LlamaForCausalLM": LlamaForCausalLM})
    keys.append(export_key(request))
    monkeypatch.syspath_prepend(tmp_path)
    helper, module = tmp_path / "authors_helper.py", tmp_path / "authors_llama.py"
    helper.write_text("DEPTH = 1\n", "utf-8")
    module.write_text("from authors_helper import DEPTH\n" + LLAMA_MAP.read_text("utf-8"), "utf-8")
    MODULE_MAP.update({"LlamaForCausalLM": "authors_llama.LlamaForCausalLM"})
    keys.append(export_key(request))
    assert export_key(request) == keys[-1]
    helper.write_text("DEPTH = 2\n", "utf-8")
    keys.append(export_key(request))
    MODULE_MAP.pop("LlamaForCausalLM")
    file = tmp_path / "map.py"
    file.write_text("import authors_helper\n" + LLAMA_MAP.read_text("utf-8"), "utf-8")
    named = ExportRequest(checkpoint, tmp_path / "a.tflite", reading=Reading(module_map=file))
    keys.append(export_key(named))
    helper.write_text("DEPTH = 3\n", "utf-8")
    keys.append(export_key(named))
    assert len(set(keys)) == len(keys)
    for name in ("authors_helper", "authors_llama"):
        sys.modules.pop(name, None)


PLAIN = "    support_cuda_graph = True\n"


def refusal(checkpoint: Path, file: Path) -> str:
    check = flatlm.check_model(checkpoint, custom_module_map=file)
    assert check.problem is not None
    return check.problem


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ('"*.masked_bias"', "LlamaForCausalLM.ignored_weights = '*.masked_bias' must be a list of patterns"),
        ("None", "LlamaForCausalLM.ignored_weights = None must be a list of patterns"),
        ("[1]", "LlamaForCausalLM.ignored_weights = [1] must be a list of patterns"),
    ],
)
def test_one_pattern_is_no_list_of_characters(own: str, said: str, checkpoint: Path, tmp_path: Path) -> None:
    skipped = ('if "rotary_emb.inv_freq" in name:', 'if name == "model.norm.weight":')
    assert said in refusal(checkpoint, rewritten(tmp_path, (PLAIN, f"    ignored_weights = {own}\n"), skipped))


def test_a_class_that_loads_nothing_hears_it_once(checkpoint: Path, tmp_path: Path) -> None:
    lost = ("for name, loaded_weight in weights:", "for name, loaded_weight in ():")
    said = refusal(checkpoint, rewritten(tmp_path, lost))
    assert said.splitlines()[1:] == ["  load_weights fills none of the 19 parameters of LlamaForCausalLM"]
    skipped = ('if "rotary_emb.inv_freq" in name:', 'if "lm_head" in name:')
    assert "near it is lm_head.weight" not in refusal(checkpoint, rewritten(tmp_path, skipped))


POSITIONS = "        hidden_states = self.embed_tokens(input_ids)"
WRONG = {
    "no dimension": (
        "        self.lm_head = ",
        "        self.odd = torch.nn.Parameter(torch.ones(()))\n        self.lm_head = ",
        "parameter odd has no",
    ),
    "update": ("        if self.config.tie_word_embeddings:", "        raise OSError(5)\n        if 1:", "update_weights() failed"),
    "exit": ("        self.lm_head = ", "        raise SystemExit(2)\n        self.lm_head = ", "cannot be built for"),
    "forward exits": (POSITIONS, "        raise SystemExit(2)\n" + POSITIONS, "failed on two tokens: SystemExit: 2 (map.py, line "),
    "loading exits": ("        params_dict = ", "        raise SystemExit(2)\n        params_dict = ", "load_weights raises SystemExit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_authors_code_raises_is_a_refusal(case: str, checkpoint: Path, tmp_path: Path) -> None:
    right, wrong, said = WRONG[case]
    assert said in refusal(checkpoint, rewritten(tmp_path, (right, wrong)))


def test_a_condition_may_raise_anything(checkpoint: Path) -> None:
    def condition(hf_config: object) -> bool:
        raise KeyError("depth")

    type("Odd", (ConfigBuilder,), {"condition": staticmethod(condition)})
    said = flatlm.check_model(checkpoint).problem
    assert said is not None and "Odd.condition failed on" in said and "KeyError: 'depth'" in said


def test_a_forward_that_cannot_be_traced_is_named(checkpoint: Path, tmp_path: Path) -> None:
    file = rewritten(tmp_path, (POSITIONS, "        input_ids = input_ids + (position_ids.max().item() > 99)\n" + POSITIONS))
    request = ExportRequest(checkpoint, tmp_path / "a.tflite", get_recipe("none"), (4,), 48, reading=Reading(module_map=file))
    line = file.read_text("utf-8").splitlines().index("        input_ids = input_ids + (position_ids.max().item() > 99)") + 1
    with pytest.raises(ExportError, match=rf"its forward cannot be traced \(map.py, line {line}\)"), CompilerProcess() as made:
        export(request, compiler=made)
