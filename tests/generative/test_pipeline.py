"""`flatlm.pipeline` over the demo model: exported into the cache by two processes at once, then asked in every way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flatlm
from flatlm.cli import main
from flatlm.convert.bundle import MODEL_OFFSET
from flatlm.errors import CheckpointError, ConfigError, CustomModelError, ExportError, OutputError, RuntimeFileError, TokenizerError
from flatlm.generative import export_cache
from flatlm.generative.export_cache import export_directory, export_key
from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.pipeline import EngineConfig, Pipeline
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.bundling import BundleFinisher
from flatlm.utilities.exporter import ExportRequest
from flatlm.utilities.reading import Reading
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.examples.cases.encoders import CASES
from tests.examples.references import make_reference

DEMO = Path(flatlm.__file__).parent / "assets" / "demo_model"
ENGINE = EngineConfig("dynamic_int8", kv_cache_len=96, prefill_lengths=(16,), threads=1)
GREEDY = GenerationConfig(max_new_tokens=12)
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: {{ message['content'].strip() }}\n{% endfor %}AI:"
TALK = [{"role": "user", "content": " Tell me of a cat. "}]

ASK = """
import json, sys
import flatlm
stages = []
with flatlm.pipeline(sys.argv[1], kv_cache_len=96, prefill_lengths=[16], threads=1, progress=lambda *told: stages.append(told[0])) as pipe:
    print(json.dumps({"text": pipe("Once upon a time", max_new_tokens=12).text, "stages": sorted(set(stages))}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """What XDG_CACHE_HOME is here."""
    folder = tmp_path_factory.mktemp("pipelines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def first_two(cache: Path) -> list[dict]:
    """What two processes said that asked the same checkpoint, not exported yet, at the same time."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(Path(flatlm.__file__).parents[1])}
    command = [sys.executable, "-c", ASK, str(DEMO)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(line) for line in said]


@pytest.fixture(scope="module")
def exported(cache: Path, first_two: list[dict]) -> Path:
    (file,) = (cache / "flatlm" / "exports").glob("*.tflite")
    return file


@pytest.fixture
def pipe(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """From the checkpoint, and without exporting it again."""
    monkeypatch.setattr(export_cache, "export", lambda *_, **__: pytest.fail("exported again"))
    with flatlm.pipeline(DEMO, backend_config=ENGINE, gen_config=GREEDY) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    """The checkpoint with a chat template. Its model is the same."""
    folder = tmp_path_factory.mktemp("talking") / "checkpoint"
    shutil.copytree(DEMO, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}), "utf-8")
    return folder


def test_two_processes_export_once_and_say_the_same(cache: Path, first_two: list[dict], exported: Path) -> None:
    assert first_two[0]["text"] == first_two[1]["text"] != ""
    assert sorted("verify" in said["stages"] for said in first_two) == [False, True]
    assert {file.name.removeprefix(exported.stem) for file in exported.parent.iterdir()} == {".lock", ".tflite", ".tflite.manifest.json"}
    manifest = json.loads(exported.with_name(f"{exported.name}.manifest.json").read_text("utf-8"))
    assert manifest["verification"]["passed"]
    assert (manifest["kv_cache_len"], manifest["signatures"]) == (96, ["prefill_16", "decode"])


def test_answers_are_those_of_the_file_one_by_one_and_in_a_batch(pipe: Pipeline, exported: Path, first_two: list[dict]) -> None:
    tokenizer, prompts = Tokenizer.load(DEMO), ["Once upon a time", "The dog", "One day"]
    with Runner.open(exported, threads=1) as runner:
        expected = [generate(runner, tokenizer, tokenizer.encode(prompt), GREEDY) for prompt in prompts]
    assert pipe(prompts) == expected
    assert [pipe(prompt) for prompt in prompts] == expected
    assert pipe(tuple(reversed(prompts))) == expected[::-1]
    assert expected[0].text == first_two[0]["text"]
    assert expected[0].finish_reason == "length"
    assert pipe([]) == []


def test_a_stream_is_the_answer_in_pieces(pipe: Pipeline) -> None:
    answer = pipe("The dog")
    pieces = list(pipe.stream("The dog"))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert tuple(piece.token_id for piece in pieces if piece.token_id is not None) == answer.token_ids
    assert pieces[-1].finish_reason == answer.finish_reason


def test_a_stream_ends_where_another_prompt_begins(pipe: Pipeline) -> None:
    pieces = pipe.stream("The dog")
    next(pieces)
    assert pipe("One day") == pipe("One day")
    with pytest.raises(RuntimeFileError, match="another answer was asked for"):
        next(pieces)


def test_each_prompt_has_its_own_draws_of_the_seed(pipe: Pipeline, exported: Path) -> None:
    config = GenerationConfig(max_new_tokens=8, temperature=1.5, top_k=40, top_p=0.9, seed=7)
    prompts, tokenizer = ["The dog", "One day"], Tokenizer.load(DEMO)
    answers = pipe(prompts, config)
    assert answers == [pipe(prompt, config) for prompt in prompts]
    assert pipe("The dog", config, seed=8) != answers[0]
    assert pipe("The dog", config, temperature=0.0, max_new_tokens=12) == pipe("The dog")
    with Runner.open(exported, threads=1) as runner:
        expected = generate(runner, tokenizer, tokenizer.encode("The dog"), config)
    assert answers[0] == expected


@pytest.mark.parametrize("enabled", [False, True])
def test_a_shared_beginning_is_read_once_where_that_is_asked_for(pipe: Pipeline, exported: Path, enabled: bool) -> None:
    prompts = ["Once upon a time there was a cat.", "Once upon a time there was a dog.", "The dog", "The dog"]
    prompts += [f"The dog{pipe('The dog').text} And", "A cat"]  # the first goes on from an answer
    expected = pipe(prompts)
    with flatlm.pipeline(exported, tokenizer=DEMO, threads=1, enable_prefix_caching=enabled, gen_config=GREEDY) as sharing:
        read, reading, step = [0], sharing.runner.reading, sharing.runner.step
        sharing.runner.reading = lambda ids: (read.append(read.pop() + len(ids)), reading(ids))[1]
        sharing.runner.step = lambda token: (read.append(read.pop() + 1), step(token))[1]
        found = []
        for prompt in prompts:
            read.append(0)
            found.append(sharing(prompt))
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    lengths = [len(answer.prompt_token_ids) + len(answer.token_ids) - 1 for answer in expected]
    shared = [_in_common(a.prompt_token_ids, b) for a, b in zip(expected[1:], _texts(expected), strict=False)]
    assert min(shared) > 0
    assert read[1:] == ([lengths[0], *(n - s for n, s in zip(lengths[1:], shared, strict=True))] if enabled else lengths)


def _texts(answers: list) -> list[tuple[int, ...]]:
    """The tokens that are in the cache after each answer; the last one that was made is not read."""
    return [(*answer.prompt_token_ids, *answer.token_ids)[:-1] for answer in answers]


def _in_common(prompt: tuple[int, ...], held: tuple[int, ...]) -> int:
    """The last token of a prompt is always read, for its logits."""
    return next((i for i, (a, b) in enumerate(zip(prompt[:-1], held, strict=False)) if a != b), min(len(prompt) - 1, len(held)))


def test_conversations_go_through_the_chat_template(talking: Path, exported: Path, pipe: Pipeline) -> None:
    tokenizer = Tokenizer.load(talking)
    ids = tokenizer.apply_chat_template(TALK)
    assert tokenizer.decode(ids).startswith("USER: Tell me of a cat.\nAI:")
    with flatlm.pipeline(talking, backend_config=ENGINE, gen_config=GREEDY) as chat, Runner.open(exported, threads=1) as runner:
        assert chat.runner.file.path == exported
        expected = generate(runner, tokenizer, ids, GREEDY)
        assert chat(TALK) == expected
        assert chat([TALK, "The dog", TALK]) == [expected, pipe("The dog"), expected]
        assert "".join(piece.text for piece in chat.stream(TALK)) == expected.text


def test_a_bundle_brings_its_tokenizer_and_its_chat_template(talking: Path, exported: Path, pipe: Pipeline, tmp_path: Path) -> None:
    bundle, content = tmp_path / "talking.litertlm", exported.read_bytes()
    bundle.write_bytes(bytes(MODEL_OFFSET) + content)
    BundleFinisher(talking, 96)(bundle, len(content), {})
    with flatlm.pipeline(bundle, threads=1, gen_config=GREEDY) as chat:
        assert list(chat(TALK).prompt_token_ids) == Tokenizer.load(talking).apply_chat_template(TALK)
        assert chat("The dog") == pipe("The dog")


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (TALK, TokenizerError, "comes with no chat template"),
        (5, RuntimeFileError, "a prompt is a text, or a list of messages with 'role' and 'content', and not of type int"),
        (["The dog", None], RuntimeFileError, "and not of type NoneType"),
        ({"role": "user", "content": "x"}, RuntimeFileError, "and not of type dict"),
        (["The dog", "cat " * 200], RuntimeFileError, r"tokens does not fit its context of 96; shorten it, or give a larger kv_cache_len"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_before_any_is(pipe: Pipeline, prompt, error, message: str) -> None:
    pipe.runner.reset()
    with pytest.raises(error, match=message):
        pipe(prompt)
    assert pipe.runner.position == 0


def test_impossible_numbers_and_unknown_options_are_refused_before_a_stream_begins(pipe: Pipeline) -> None:
    with pytest.raises(RuntimeFileError, match="temperature -1 is not possible"):
        pipe.stream("The dog", temperature=-1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        pipe("The dog", temprature=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'quantization'"):
        flatlm.pipeline(DEMO, quantization="int4")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("kv_cache_len", "128", "kv_cache_len = '128' must be a whole number, or None"),
        ("kv_cache_len", True, "kv_cache_len = True must be a whole number"),
        ("prefill_lengths", 16, r"prefill_lengths = 16 must be a tuple of whole numbers, such as \(128, 512\)"),
        ("prefill_lengths", ("16",), r"prefill_lengths = \('16',\) must be whole numbers"),
        ("recipe", None, "recipe = None must be the name of a recipe"),
        ("custom", 3, "custom = 3 must be the path of a Python file"),
        ("verify", "no", "verify = 'no' must be True or False"),
        ("kv_cache_dtype", None, "kv_cache_dtype = None must be the name of a type"),
        ("threads", 1.5, "threads = 1.5 must be a whole number"),
    ],
)
def test_fields_of_another_type_are_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        flatlm.pipeline(DEMO, **{field: value})


def test_the_command_line_talks_to_a_checkpoint_through_the_same_cache(
    pipe: Pipeline, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[ExportRequest] = []
    monkeypatch.setattr(export_cache, "cached_export", lambda request, **_: (asked.append(request), exported)[1])
    options = ["--prompt", "The dog", "--max-new-tokens", "12", "--json"]
    assert main(["generate", "-p", str(DEMO), "--custom", "mine.py", "--recipe", "none", *options]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == pipe("The dog").text
    assert main(["generate", "-p", str(DEMO), *options]) == 0
    assert asked[0] == ExportRequest(DEMO, DEMO, get_recipe("none"), reading=Reading(custom=Path("mine.py")))
    flatlm.pipeline(DEMO).close()
    assert asked[1] == asked[2]  # what a pipeline asks for
    capsys.readouterr()
    wrong = {
        "give one of two: an exported file, or a checkpoint": [[], [str(exported), "-p", str(DEMO)]],
        "is exported already: --recipe, --custom and the like": [
            [str(exported), "--custom", "mine.py"],
            [str(exported), "--recipe", "none"],
        ],
    }
    for said, lines in wrong.items():
        for line in lines:
            assert main(["generate", *line, *options]) == 2
            assert said in capsys.readouterr().err


def test_a_closed_pipeline_says_so(exported: Path) -> None:
    pipe = flatlm.pipeline(str(exported), tokenizer=str(DEMO), threads=1)
    pieces = pipe.stream("The dog")
    next(pieces)
    pipe.close()
    pipe.close()
    with pytest.raises(RuntimeFileError, match="this pipeline was closed; make another"):
        pipe("The dog")
    with pytest.raises(RuntimeFileError, match="its text was closed"):
        next(pieces)


def test_what_is_no_model_and_what_comes_too_late_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFileError, match=r"none\.tflite does not exist; give an exported file"):
        flatlm.pipeline(tmp_path / "none.tflite", tokenizer=DEMO)
    with pytest.raises(CheckpointError, match=r"is neither an exported file \(.tflite, .litertlm\) nor a checkpoint"):
        flatlm.pipeline(tmp_path / "none")
    with pytest.raises(TokenizerError, match="has no tokenizer of its own"):
        flatlm.pipeline(exported)
    with pytest.raises(ExportError, match="is exported already, and recipe, custom_module_map would be for exporting it"):
        flatlm.pipeline(exported, tokenizer=DEMO, recipe="none", module_map="map.py")
    with pytest.raises(CustomModelError, match=r"missing\.py cannot be read"):
        flatlm.pipeline(DEMO, custom=tmp_path / "missing.py")
    with pytest.raises(ExportError, match="--kv-cache-len 4096 is longer than"):
        flatlm.pipeline(DEMO, kv_cache_len=4096)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flatlm").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OutputError, match=r"cannot be written .*: set XDG_CACHE_HOME"):
        flatlm.pipeline(DEMO)


def test_the_key_follows_from_all_that_decides_and_not_from_the_path(talking: Path, tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text("a = 1")
    request = ExportRequest(DEMO, tmp_path / "a.tflite")
    keys = [
        export_key(request),
        export_key(request, verify=False),
        export_key(ExportRequest(DEMO, tmp_path, get_recipe("dynamic_int4_block32"))),
        export_key(ExportRequest(DEMO, tmp_path, prefill_lengths=(32,))),
        export_key(ExportRequest(DEMO, tmp_path, kv_cache_len=64)),
        export_key(ExportRequest(DEMO, tmp_path, kv_cache_len=(64, 128))),
        export_key(ExportRequest(DEMO, tmp_path, verify_length=4)),
        export_key(ExportRequest(DEMO, tmp_path, kv_cache_dtype="float16")),
        export_key(ExportRequest(DEMO, tmp_path, reading=Reading(custom=code))),
        export_key(ExportRequest(DEMO, tmp_path, reading=Reading(module_map=code))),
    ]
    code.write_text("a = 2")
    keys.append(export_key(ExportRequest(DEMO, tmp_path, reading=Reading(custom=code))))
    assert export_key(ExportRequest(DEMO, tmp_path, kv_cache_len=(128, 64, 64))) == keys[5]  # as the export takes it
    other = shutil.copytree(talking, tmp_path / "other")
    assert export_key(ExportRequest(other, tmp_path)) == keys[0]
    (other / "config.json").write_text((other / "config.json").read_text("utf-8") + " ", "utf-8")
    keys.append(export_key(ExportRequest(other, tmp_path)))
    assert len(set(keys)) == len(keys)


def test_exports_that_were_not_used_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        for suffix in ("tflite", "tflite.manifest.json", "lock"):
            (tmp_path / f"{name}.{suffix}").write_bytes(bytes(100))
            os.utime(tmp_path / f"{name}.{suffix}", (1000 - age, 1000 - age))
    monkeypatch.setattr(export_cache, "MOST_BYTES_IN_ALL", 250)
    export_cache._forget(tmp_path, tmp_path / "old.tflite")
    assert {file.name.split(".")[0] for file in tmp_path.iterdir() if file.suffix != ".lock"} == {"new", "old"}
    assert len(list(tmp_path.glob("*.lock"))) == 3  # others may be waiting for it


def test_it_is_reached_from_the_package(cache: Path) -> None:
    from flatlm.generative.pipeline import pipeline

    assert flatlm.pipeline is pipeline
    assert flatlm.EngineConfig is EngineConfig
    assert flatlm.GenerationConfig is GenerationConfig
    assert export_directory() == cache / "flatlm" / "exports"
    with pytest.raises(AttributeError, match="has no attribute 'pipelines'"):
        flatlm.pipelines  # noqa: B018
    loaded = "import sys, flatlm; print(sorted({'numpy', 'torch', 'flatlm.generative'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_model_of_another_kind_is_refused_before_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_reference(CASES[0], tmp_path / "bert")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RuntimeFileError, match="is of the kind encoder, and this writes on with decoders"):
        flatlm.pipeline(tmp_path / "bert")
    assert not list((tmp_path / "cache").rglob("*.tflite"))
