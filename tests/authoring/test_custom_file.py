"""Files with a user's own model: what they may hold, when they are run, and what is said of the wrong ones."""

import json
from pathlib import Path

import pytest

from flatlm.authoring.custom_file import custom_builder, load_model_class
from flatlm.cli import main
from flatlm.errors import CheckpointError, ConfigError, CustomModelError
from flatlm.generative.reference import require_its_code
from flatlm.generative.verify import verify
from flatlm.utilities.configs.registry import ConfigBuilder, build_config
from flatlm.utilities.example import build_model, run_sample
from flatlm.utilities.reading import Reading
from tests.examples.references import LLAMA_BASE, Case, make_reference

GRAPH = "from flatlm import ComputeGraph\n\nclass Mine(ComputeGraph):\n    def build(self):\n        "
FAMILY = """
from flatlm.examples.llama import TENSOR_NAMES, LlamaConfigBuilder

class Mine(LlamaConfigBuilder):
    family = "mine"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config, model_path):
        hf_config.skip("odd_key")
        return super().build(hf_config, model_path)

__model__ = Mine
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_reference(Case("mine", LLAMA_BASE), folder)
    return folder


WRONG = {
    "syntax": ("x = = 1\n", "my_model.py:1: SyntaxError: invalid syntax"),
    "raises": ("\n\n1 / 0\n", "my_model.py:3: the file raised ZeroDivisionError: division by zero"),
    "import": ("from ftllm.llm import ComputeGraph\n", "No module named 'ftllm'; write from flatlm.llm import ComputeGraph"),
    "leaves": ("raise SystemExit(3)\n", "my_model.py:1: the file raised SystemExit: 3"),
    "no_model": (f"{GRAPH}pass\n", "does not say which class is the model: end it with __model__ = Mine"),
    "nothing": ("", "end it with __model__ = YourModel"),
    "no_class": (
        f"{GRAPH}pass\n__model__ = 'Mine'\n",
        "__model__ = 'Mine' is not a subclass of ComputeGraph or ConfigBuilder; such as __model__ = Mine",
    ),
    "other_class": ("__model__ = dict\n", "is not a subclass of ComputeGraph or ConfigBuilder"),
    "base": ("from flatlm import ComputeGraph\n__model__ = ComputeGraph\n", "is not a subclass of"),
    "no_names": (
        "from flatlm.utilities.configs.registry import ConfigBuilder\nclass B(ConfigBuilder): pass\n__model__ = B",
        "B has no tensor_names",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_one_line(name: str, tmp_path: Path) -> None:
    text, said = WRONG[name]
    file = tmp_path / "my_model.py"
    file.write_text(text)
    with pytest.raises(CustomModelError) as raised:
        custom_builder(file)
    assert said in str(raised.value) and "\n" not in str(raised.value)


IN_BUILD = {
    "raises": ("self.config['n_layer']\n", "my_model.py:5: Mine.build() raised KeyError: 'n_layer'"),
    "arguments": ("self.Silu(self.data['x'])\n", "my_model.py:5: Mine.build() raised TypeError: "),
    "in": (
        "if 'b' in self.weight: pass\n",
        'my_model.py:5: Mine.build() raised TypeError: what weight[""] has cannot be asked: weights are names only; '
        "a bias that the checkpoint lacks is none by itself",
    ),
    "list": ("[*self.data['pastKey.']]\n", 'raised TypeError: data["pastKey."] is no list: data are names only'),
    "true": ("self.weight['zz'] or 1\n", 'raised TypeError: weight["zz"] is neither true nor false: weights are names only'),
    "config": ("self.config = 3\n", "build() made self.config a int; it is a dict"),
}


@pytest.mark.parametrize("name", IN_BUILD)
def test_what_build_raises_names_file_and_line(name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, said = IN_BUILD[name]
    file = tmp_path / "my_model.py"
    file.write_text(f"{GRAPH}{text}__model__ = Mine\n")
    assert main(["check", "-p", str(checkpoint), "--custom", str(file)]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CustomModelError, match="No such file or directory"):
        load_model_class(tmp_path / "nowhere.py")
    with pytest.raises(CustomModelError, match="Is a directory"):
        load_model_class(tmp_path)


def test_a_checkpoints_own_code_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "with_code", tmp_path / "ran"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("my_model.py", "model.py", "modeling.py", "custom.py", "__init__.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    assert main(["check", str(folder)]) == 0
    assert not ran.exists()
    with pytest.raises(CustomModelError):
        build_config(folder, Reading(custom=folder / "my_model.py"))
    assert ran.exists()


def test_a_family_of_the_users_own_is_for_the_checkpoint_at_hand_only(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_model.py"
    file.write_text(FAMILY)
    (odd := tmp_path / "odd").mkdir()
    for each in checkpoint.iterdir():
        (odd / each.name).write_bytes(each.read_bytes())
    text = (odd / "config.json").read_text().replace("{", '{"odd_key": 3,', 1)
    (odd / "config.json").write_text(text)
    before = list(ConfigBuilder._builders)
    config, builder = build_config(odd, Reading(custom=file))
    assert builder.family == "mine" and config.vocab_size == LLAMA_BASE["vocab_size"]
    assert ConfigBuilder._builders == before
    assert build_config(checkpoint)[1].family == "llama"
    logits = run_sample(build_model(odd, reading=Reading(custom=file)))
    assert float((logits - run_sample(build_model(checkpoint))).abs().max()) == 0.0


def test_a_tensor_that_no_call_names_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_model.py"
    written = (Path(__file__).parent / "compute_graph" / "custom" / "llama_written.py").read_text()
    file.write_text(
        written.replace(
            'layer[f".self_attn.{name}_proj.weight"]', "layer['.self_attn.q_proj.weight' if name == 'q' else '.self_attn.k_proj.weight']"
        )
    )
    with pytest.raises(CheckpointError, match=r"model.layers.0.self_attn.v_proj.weight \[32, 64\] is not used by the model"):
        build_model(checkpoint, reading=Reading(custom=file))


@pytest.mark.parametrize("other", [["--model", "llama"], ["--module-map", "map.py"]])
def test_two_that_say_what_the_model_is_are_refused(other: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = Path(__file__).parent / "compute_graph" / "custom" / "llama_written.py"
    assert main(["check", "-p", str(checkpoint), "--custom", str(written), *other]) == 2
    assert f"llama_written.py says what the model is, and so does {' '.join(other)}: leave one of them out" in capsys.readouterr().err


def test_what_a_file_prints_is_not_the_answer(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talking.py"
    written = (Path(__file__).parent / "compute_graph" / "custom" / "llama_written.py").read_text()
    file.write_text('print("loaded")\n' + written.replace("def build(self):\n", 'def build(self):\n        print("built")\n'))
    assert main(["check", "-p", str(checkpoint), "--custom", str(file), "--json"]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "loaded\nbuilt\n" in printed.err


@pytest.mark.parametrize(
    ("facts", "option"),
    [
        ({"custom": {"file": "mine.py", "sha256": ""}}, "--custom mine.py"),
        ({"module": "UnheardForCausalLM"}, "--module-map UnheardForCausalLM"),
    ],
)
def test_a_file_of_ones_own_code_is_verified_with_it(
    facts: dict[str, object], option: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["UnheardForCausalLM"]}')
    monkeypatch.setattr("flatlm.generative.verify.read_manifest", lambda file: facts)
    file, own = tmp_path / "mine.tflite", option.split()[0]
    with pytest.raises(ConfigError) as raised:
        verify(file, tmp_path)
    assert str(raised.value).startswith(
        f"{file} was exported with {option}, and {tmp_path} does not say what it is: give that file with {own}"
    )
    require_its_code(facts, file, tmp_path, Reading(custom=Path("mine.py")))
    require_its_code(facts, file, checkpoint, Reading())  # which transformers knows
    require_its_code({}, file, tmp_path, Reading())


def test_recipes_that_calibrate_a_decoder_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = Path(__file__).parent / "compute_graph" / "custom" / "llama_written.py"
    options = ["-p", str(checkpoint), "--custom", str(written), "-o", str(tmp_path / "o.tflite"), "--recipe", "static_int8"]
    assert main(["export", *options]) == 2
    assert "calibrates, which FlatLM does for decoders alone" in capsys.readouterr().err


def test_a_checkpoint_is_given_once(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["check"], ["check", str(checkpoint), "-p", str(checkpoint)]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
    printed = capsys.readouterr().err
    assert "required: checkpoint, or -p DIR" in printed and "there are two checkpoints" in printed


def test_importing_flatlm_loads_nothing_for_it() -> None:
    import subprocess
    import sys

    code = (
        "import sys, flatlm; assert not any('authoring' in name for name in sys.modules); flatlm.ComputeGraph; "
        "import flatlm.llm; assert flatlm.llm.ComputeGraph is flatlm.ComputeGraph; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import flatlm

    with pytest.raises(AttributeError, match="has no attribute 'ComputeGraf'"):
        _ = flatlm.ComputeGraf
