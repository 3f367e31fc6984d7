"""Who is asked about a checkpoint, in which order, and what is said where something is wrong. Nothing here is compiled."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flatlm
from flatlm.authoring.config import AuthoredConfig, ConfigBuilder, DefaultModelConfigBuilder
from flatlm.authoring.config import ModelConfig as Sizes
from flatlm.authoring.module_map import MODULE_MAP, ModuleReference
from flatlm.errors import ConfigError, FlatlmError
from flatlm.generative.reference import reference_name
from flatlm.layers.config import ModelConfig
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import build_config, find_builder
from flatlm.utilities.exporter import ExportRequest, plan_export
from flatlm.utilities.reading import Reading
from tests.authoring.checkpoints import GEMMA_BLOCKS, GEMMA_MAP, LLAMA_MAP, gemma, refusal, rewrite, written
from tests.authoring.llama_modules import LlamaForCausalLM


def test_builders_from_outside_are_asked_first_and_in_order(made: Path) -> None:
    asked: list[str] = []

    def builder(name: str, takes: bool) -> None:
        def condition(cls: Any, hf_config: ConfigReader) -> bool:
            asked.append(name)
            return takes and hf_config.attention_bias is True

        def build(cls: Any, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
            hf_config.skip(*hf_config.values)
            return build_config(made, Reading(family="llama"))[0]  # type: ignore[no-any-return]

        names = find_builder(ConfigReader({"architectures": ["LlamaForCausalLM"]}, "x"), family="llama").tensor_names
        members = {"condition": classmethod(condition), "build": classmethod(build), "tensor_names": names, "family": name}
        type(name, (ConfigBuilder,), members)

    builder("first", takes=False)
    builder("second", takes=True)
    builder("third", takes=True)
    config, chosen = build_config(made)
    assert (chosen.family, type(config)) == ("second", ModelConfig)
    assert asked == ["first", "second"]
    assert build_config(made, Reading(family="llama"))[1].family == "llama"  # who is named is not asked
    assert flatlm.check_model(made).family == "second"


def test_what_a_condition_looks_at_does_not_count_as_read(checkpoint: Path) -> None:
    members = {"condition": staticmethod(lambda hf_config: hf_config.odd_key == 2)}
    type("Mine", (ConfigBuilder,), members)
    rewrite(checkpoint, odd_key=1)
    assert "odd_key = 1" in refusal(checkpoint)


def test_a_builder_of_a_users_file_is_for_those_who_name_it(tmp_path: Path) -> None:
    gemma(tmp_path)
    assert build_config(tmp_path, Reading(module_map=GEMMA_BLOCKS))[1].family == "my_gemma"
    assert build_config(tmp_path)[1].family == "gemma"


def takes(hf_config: Any) -> bool:
    return True


SIZES_FOR_BLOCKS = {"condition": takes, "tensor_names": 0, "build": DefaultModelConfigBuilder.build}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "has no condition: define condition(cls, hf_config) as a classmethod"),
        ({"condition": lambda hf_config: hf_config.modle_type}, "condition cannot be asked about"),
        ({"condition": takes}, "has no tensor_names, and no module map has a class for the architecture 'LlamaForCausalLM'"),
        ({"condition": takes, "tensor_names": 0, "build": lambda config, path: config.nope}, "build failed on"),
        ({"condition": takes, "tensor_names": 0, "build": lambda config, path: {}}, "gave a builtins.dict for"),
        (SIZES_FOR_BLOCKS, "gave a flatlm.authoring.config.ModelConfig"),
        ({"condition": lambda hf_config: False}, ""),
    ],
)
def test_wrong_builders(members: dict[str, Any], said: str, made: Path) -> None:
    type("Mine", (ConfigBuilder,), {name: staticmethod(value) if callable(value) else value for name, value in members.items()})
    check = flatlm.check_model(made)
    assert said in str(check.problem) if said else check.family == "llama"
    assert not said or "Mine" in str(check.problem)


def test_a_class_is_found_by_object_text_and_file(made: Path, tmp_path: Path) -> None:
    own = written(
        tmp_path, LLAMA_MAP.read_text("utf-8").replace('LlamaForCausalLM": LlamaForCausalLM', 'LlamaForCausalLM": "LlamaForCausalLM"')
    )
    updating = written(
        tmp_path,
        "from flatlm.authoring.module_map import MODULE_MAP\nfrom map import LlamaForCausalLM\n"
        "MODULE_MAP.update({'LlamaForCausalLM': LlamaForCausalLM})\n",
        "updating.py",
    )
    for file in (own, updating):
        assert isinstance(build_config(made, Reading(module_map=file))[0], AuthoredConfig)
        assert isinstance(build_config(made)[0], ModelConfig)  # a file counts for those who name it
    for entry in (LlamaForCausalLM, "tests.authoring.llama_modules.LlamaForCausalLM"):
        MODULE_MAP.update({"LlamaForCausalLM": entry})
        config, builder = build_config(made)
        assert isinstance(config, AuthoredConfig)
        assert builder.family == "LlamaForCausalLM (module map)"
        assert reference_name(made, length=48) == "eager"  # whatever class of the name transformers has
        assert pickle.loads(pickle.dumps(config)) == config
        assert hash(pickle.loads(pickle.dumps(config))) == hash(config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (No such file or directory): name a Python file"),
        ("MODULE_MAP = {", "map.py:1: SyntaxError"),
        ("import nowhere", "map.py:1: the file raised ModuleNotFoundError: No module named 'nowhere'"),
        ("MODULE_MAP = []", "MODULE_MAP must be a dict of architectures and classes, not list"),
        ("", "has no class for the architecture 'LlamaForCausalLM'"),
        ("MODULE_MAP = {'LlamaForCausalLm': int}", "did you mean LlamaForCausalLm?"),
        ("MODULE_MAP = {'LlamaForCausalLM': 'Llama'}", "there is no Llama in the file"),
        ("MODULE_MAP = {'LlamaForCausalLM': 'nowhere.Llama'}", "the class nowhere.Llama cannot be imported"),
        ("MODULE_MAP = {'LlamaForCausalLM': 7}", "is not a class"),
        ("MODULE_MAP = {'LlamaForCausalLM': int}", "cannot be built for"),
        ("class L:\n def __init__(self, config, ctx_mgr): pass\nMODULE_MAP = {'LlamaForCausalLM': L}", "is not a torch.nn.Module"),
    ],
)
def test_wrong_maps(text: str | None, said: str, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.py" if text is None else written(tmp_path, text)
    message = refusal(made, path)
    assert said in message
    assert "map.py" in message or "nowhere" in message


def test_a_class_that_no_other_process_can_import_is_refused(made: Path) -> None:
    class Local(LlamaForCausalLM):
        pass

    MODULE_MAP.update({"LlamaForCausalLM": Local})
    assert "put it into a file of its own, and name that with --module-map (custom_module_map)" in refusal(made)


PACKAGE = """
from flatlm.authoring.config import ConfigBuilder
{llama}
class Registered(ConfigBuilder):
    @classmethod
    def condition(cls, hf_config):
        return hf_config.architectures == ["AnotherLlama"]
"""


def test_an_installed_package_is_asked(checkpoint: Path, tmp_path: Path) -> None:
    """Its entry points are a class for an architecture, and a module that registers; another process finds it again."""
    site = tmp_path / "site"
    written_package = site / "outside_models"
    written_package.mkdir(parents=True)
    written(written_package, PACKAGE.format(llama=LLAMA_MAP.read_text("utf-8")), "__init__.py")
    facts = site / "outside_models-1.0.dist-info"
    facts.mkdir()
    written(facts, "Metadata-Version: 2.1\nName: outside-models\nVersion: 1.0\n", "METADATA")
    points = "[flatlm.models]\nOutsideLlama = outside_models:LlamaForCausalLM\nregistered = outside_models\n"
    written(facts, points, "entry_points.txt")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((checkpoint / "config.json").read_text("utf-8"), "utf-8")
    rewrite(checkpoint, architectures=["OutsideLlama"])
    rewrite(other, architectures=["AnotherLlama"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    code = (
        "import json, pickle, sys, flatlm\n"
        "checks = [flatlm.check_model(path) for path in sys.argv[1:]]\n"
        "print(json.dumps([[check.problem, check.family, pickle.dumps(check.config).hex()] for check in checks]))"
    )

    def checked() -> Any:
        command = [sys.executable, "-c", code, str(checkpoint), str(other)]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    (problem, family, config), (of_the_other, *_) = checked()
    assert (problem, family) == (None, "OutsideLlama (module map)")
    found: ModuleReference = pickle.loads(bytes.fromhex(config)).reference
    try:
        assert found.resolve().__name__ == "LlamaForCausalLM"  # this process has no such folder in its path before
    finally:
        sys.path[:] = [folder for folder in sys.path if folder != str(site)]
        sys.modules.pop("outside_models", None)
    assert "outside_models.Registered takes" in of_the_other
    written(facts, points.replace("registered = outside_models", "registered = absent_models"), "entry_points.txt")
    assert "the entry point registered of flatlm.models (absent_models) cannot be imported: ModuleNotFoundError" in checked()[0][0]


IN_PLACE = "        self.o_proj.weight.mul_(2)\n        cos, sin = rotary_pos_emb\n"


NO_TABLE = "input_ids[..., None].repeat(1, 1, 64).float()"


SPOILT = {
    "construction": ("config.rms_norm_eps", "config.rms_eps", "AttributeError: {} has no rms_eps"),
    "forward": ("rotary_pos_emb = (cos[0], sin[0])", "rotary_pos_emb = (cos[1], sin)", "failed on two tokens: IndexError"),
    "one cache for all": ("past_key_values[index]", "past_key_values[0]", "past_key_values[0] is given to two Attention calls"),
    "a cache that is not there": ("past_key_values[index]", "past_key_values[index + 1]", "failed on two tokens: IndexError"),
    "caches of two layers": (
        "past_key_value[1], attn",
        "past_key_value[0].layer.step.layers[1][1], attn",
        "Attention takes past_key_values[layer][0] and past_key_values[layer][1] of one layer",
    ),
    "no embedding": ("self.embed_tokens(input_ids)", NO_TABLE, "no parameter is looked up by an embedding"),
    "in place": (
        "        cos, sin = rotary_pos_emb\n",
        IN_PLACE,
        "forward changes the parameter model.layers.0.self_attn.o_proj.weight in place (mul_)",
    ),
    "alibi": ("v_head_size=width)", "v_head_size=width, alibi=True)", "causal attention without ALiBi"),
    "unread": ("bias=config.mlp_bias", "bias=False", "mlp_bias = true"),
}
"""What is written in the class, what stands there instead, and what is said of it."""


@pytest.mark.parametrize("case", SPOILT)
def test_wrong_classes(case: str, checkpoint: Path, tmp_path: Path) -> None:
    right, wrong, said = SPOILT[case]
    text = LLAMA_MAP.read_text("utf-8")
    assert right in text
    text = text.replace(right, wrong)
    rewrite(checkpoint, mlp_bias=case == "unread")
    message = refusal(checkpoint, written(tmp_path, text))
    assert said.format(checkpoint / "config.json") in message
    assert "\n" not in message


def test_sizes_that_a_builder_gives_must_be_the_modules(made: Path) -> None:
    class Mine(ConfigBuilder):
        heads = 4

        @classmethod
        def condition(cls, hf_config: ConfigReader) -> bool:
            return hf_config.model_type in ["llama"]

        @classmethod
        def build(cls, hf_config: ConfigReader, model_path: Path) -> Sizes:
            return Sizes(hf_config.hidden_size, 2, cls.heads, hf_config.num_key_value_heads, max_positions=32)

    MODULE_MAP.update({"LlamaForCausalLM": LlamaForCausalLM})
    assert build_config(made)[0].max_positions == 32
    Mine.heads = 8
    assert "says num_attention_heads = 8, the module has 4" in refusal(made)


def test_recipes_that_walk_blocks_are_refused(checkpoint: Path) -> None:
    text = checkpoint / "text.txt"
    text.write_text("words")
    for recipe in ("calibrated_int4_block32", "static_int8"):
        request = ExportRequest(
            checkpoint, checkpoint / "x.tflite", get_recipe(recipe), reading=Reading(module_map=LLAMA_MAP), calibration=text
        )
        with open_checkpoint(checkpoint) as store, pytest.raises(FlatlmError, match="for decoders alone"):
            plan_export(store, request)


def test_a_map_that_is_not_for_the_checkpoint(tmp_path: Path, made: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no class for the architecture 'LlamaForCausalLM' of .*: did you mean GemmaForCausalLM"):
        build_config(made, Reading(module_map=GEMMA_MAP))
