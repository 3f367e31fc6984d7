"""What a class from outside may not say: positions beyond its rotary embedding, patterns that are no list. And where its prints go."""

import json
from pathlib import Path

import pytest

import flatlm
from flatlm.cli import main
from tests.authoring.checkpoints import LLAMA_MAP, llama, rewrite

BUILDER = """
from flatlm.authoring.config import ConfigBuilder, ModelConfig

class Mine(ConfigBuilder):
    @classmethod
    def condition(cls, hf_config):
        return True

    @classmethod
    def build(cls, hf_config, model_path):
        hf_config.skip("rope_parameters")
        return ModelConfig(64, 2, 4, 2, max_positions={positions})
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    llama(directory)
    rewrite(directory, max_position_embeddings=32)
    return directory


def problem(checkpoint: Path, file: Path, text: str) -> str | None:
    file.write_text(text, "utf-8")
    return flatlm.check_model(checkpoint, custom_module_map=file).problem


def test_dynamic_scaling_ends_where_it_would_begin_to_scale(checkpoint: Path, tmp_path: Path) -> None:
    text, file = LLAMA_MAP.read_text("utf-8"), tmp_path / "map.py"
    built = (
        "build_rotary_embedding(width, 32, emb_type=RopeType.DynamicNTKScaling, scaling_factor=2.0)",
        "build_rotary_embedding_from_config(config)",
    )
    own = text.replace(
        "        self.rotary_emb = ", "        width = config.hidden_size // config.num_attention_heads\n        self.rotary_emb = "
    )
    own = own.replace(
        "    build_rotary_embedding_from_config,\n", "    RopeType,\n    build_rotary_embedding,\n    build_rotary_embedding_from_config,\n"
    )
    for call in built:
        written = own.replace(built[1], call)
        rewrite(checkpoint, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0} if call == built[1] else None)
        assert problem(checkpoint, file, written + BUILDER.format(positions=32)) is None
        said = problem(checkpoint, file, written + BUILDER.format(positions=33))
        assert said is not None and "max_positions is 33, and its dynamic scaling begins beyond 32 positions" in said


def test_ignored_weights_are_a_list_of_patterns(checkpoint: Path, tmp_path: Path) -> None:
    rewrite(checkpoint, rope_parameters=None)
    text = LLAMA_MAP.read_text("utf-8").replace("    support_cuda_graph = True\n", '    ignored_weights = "*.inv_freq"\n')
    said = problem(checkpoint, tmp_path / "map.py", text)
    assert said is not None and "LlamaForCausalLM.ignored_weights = '*.inv_freq' must be a list of patterns" in said


def test_what_a_class_prints_is_not_the_answer(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(checkpoint, rope_parameters=None)
    text, file = 'print("loaded")\n' + LLAMA_MAP.read_text("utf-8"), tmp_path / "map.py"
    for name in ("__init__", "forward", "update_weights", "load_weights"):
        head, _, tail = text.rpartition(f"    def {name}(")
        line, _, rest = tail.partition(":\n")  # of its signature
        text = f"{head}    def {name}({line}:\n        print({name!r})\n{rest}"
    file.write_text(text + BUILDER.format(positions=32).replace("return Model", 'print("sizes"); return Model'), "utf-8")
    assert main(["check", "-p", str(checkpoint), "--module-map", str(file), "--json"]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert {"loaded", "__init__", "forward", "update_weights", "load_weights", "sizes"} <= set(printed.err.split())
