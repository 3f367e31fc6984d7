"""A sweep's file: the cells it means, and every way to get it wrong."""

from pathlib import Path

import pytest

from flatlm.errors import SweepError
from flatlm.generative.harness.request import TaskRequest
from flatlm.generative.sweeping.plan import EvaluateOptions, plain_name, read_sweep
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.recipe_file import write_recipe


@pytest.fixture
def written(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "text.txt").write_text("once")

    def write(content: str) -> Path:
        file = tmp_path / "s.yaml"
        file.write_text(content)
        return file

    return write


def test_all_combinations_become_cells(written, tmp_path):
    write_recipe(tmp_path / "own.json", get_recipe("dynamic_int8").mixed("own_one", "dynamic_int8", {"lm_head.*": "float32"}))
    sweep = read_sweep(
        written("""
models: [a, {checkpoint: b, name: bee, family: llama, ignore_config_keys: [x], tokenizer: a}]
recipes: [none, own.json]
prefill: [[16, 128], [8]]
kv_cache_len: [256, 512]
kv_cache_dtype: [float32, int8]
format: litertlm
verify: 64
evaluate: {text: text.txt, max_tokens: 100}
benchmark: {targets: [local, "ssh://me@board", adb, "adb:1234"], depths: [0, 64], runs: 3, threads: 2, warmup: 0, runner: text.txt}
keep_files: false
""")
    )
    assert len(sweep.cells) == 2 * 2 * 2 * 2 * 2 == len({cell.name for cell in sweep.cells})
    assert sweep.cells[0].name == "a-none-p16_128-kv256"
    last = sweep.cells[-1]
    assert last.name == "bee-own_one-p8-kv512-int8"
    assert (last.model.checkpoint, last.model.tokenizer) == (tmp_path / "b", tmp_path / "a")
    assert (last.model.family, last.model.ignored_config_keys) == ("llama", ("x",))
    assert (last.format, last.verify, last.verify_tokens, last.keep_file) == ("litertlm", True, 64, False)
    assert last.evaluate and (last.evaluate.text, last.evaluate.max_tokens) == (tmp_path / "text.txt", 100)
    assert (
        last.benchmark
        and (last.benchmark.depths, last.benchmark.warmup) == ((0, 64), 0)
        and last.targets == ("local", "ssh://me@board", "adb", "adb:1234")
    )
    assert sweep.inputs == [tmp_path / "a", tmp_path / "text.txt", tmp_path / "b"]


def test_little_is_needed(written):
    (cell,) = read_sweep(written("models: [a]\nrecipes: [none]\n")).cells
    assert cell.name == "a-none"
    assert (cell.prefill, cell.kv_cache_len, cell.kv_cache_dtype, cell.format) == (None, None, "float32", "tflite")
    assert (cell.verify, cell.verify_tokens, cell.evaluate, cell.benchmark, cell.keep_file) == (True, None, None, None, True)


def test_tasks_and_layers_are_part_of_an_evaluation(written, tmp_path):
    def options(value: str) -> EvaluateOptions | None:
        return read_sweep(written(f"models: [a]\nrecipes: [none]\nevaluate: {{{value}}}\n")).cells[0].evaluate

    asked = "tasks: [arc_easy, own], num_fewshot: 0, limit: 0.5, include_path: b, apply_chat_template: true"
    tasks = TaskRequest(("arc_easy", "own"), 0, 0.5, tmp_path / "b", True)
    assert options(asked) == EvaluateOptions(tasks=tasks)
    assert read_sweep(tmp_path / "s.yaml").inputs == [tmp_path / "a", tmp_path / "b"]
    assert options("tasks: [own], limit: 20, text: text.txt, layers: true") == EvaluateOptions(
        tmp_path / "text.txt", layers=True, tasks=TaskRequest(("own",), limit=20)
    )


WRONG = {
    "evaluate: {tasks: own}": r"evaluate\.tasks: must be a list of at least one, such as \[a, b\], not 'own'",
    "evaluate: {tasks: [1]}": r"evaluate\.tasks\[0\]: must be text, not 1",
    "evaluate: {tasks: [own], limit: 1.5}": r"evaluate\.limit: must be a whole number of questions, or a part of them .*, not 1\.5",
    "evaluate: {tasks: [own], limit: true}": r"evaluate\.limit: must be a whole number of questions",
    "evaluate: {tasks: [own], limit: 0}": r"evaluate\.limit: must be a whole number of questions",
    "evaluate: {tasks: [own], num_fewshot: -1}": r"evaluate\.num_fewshot: must be a whole number of at least 0",
    "evaluate: {tasks: [own], include_path: text.txt}": r"evaluate\.include_path: .*text\.txt is a file: name a directory of tasks",
    "evaluate: {tasks: [own], include_path: c}": r"evaluate\.include_path: .*c does not exist",
    "evaluate: {tasks: [own], apply_chat_template: 1}": r"evaluate\.apply_chat_template: must be true or false",
    "evaluate: {tasks: [own], shots: 1}": r"evaluate\.shots: unknown key; there are .*num_fewshot",
    "evaluate: {tasks: [own], stride: 8}": r"evaluate\.stride: is about text: add `text: FILE`",
    "evaluate: {tasks: [own], layers: true}": r"evaluate\.layers: is about text",
    "evaluate: {text: text.txt, num_fewshot: 0}": r"evaluate\.num_fewshot: is about tasks: add `tasks: \[NAME\]`",
    "evaluate: {text: text.txt, layers: 3}": r"evaluate\.layers: must be true or false, not 3",
    "colour: red": r"colour: unknown key; there are models, recipes",
    "evaluate: {text: text.txt, max_token: 5}": r"evaluate\.max_token: unknown key; did you mean max_tokens\?",
    "evaluate: {max_tokens: 5}": r"evaluate: has no 'text'",
    "evaluate: {text: nowhere.txt}": r"evaluate\.text: .*nowhere\.txt does not exist; a relative path begins at the sweep file",
    "evaluate: {text: a}": r"evaluate\.text: .*a is a directory: name a file",
    "evaluate: text.txt": r"evaluate: must be a mapping of keys to values, not 'text.txt'",
    "benchmark: {targets: [locl]}": r"benchmark\.targets\[0\]: there is no target 'locl': give one of local, ssh",
    "benchmark: {targets: [1]}": r"benchmark\.targets\[0\]: there is no target '1'",
    "benchmark: {targets: [adb]}": r"benchmark\.targets: adb needs `runner: PATH`",
    "benchmark: {ssh_options: [1]}": r"benchmark\.ssh_options\[0\]: must be text, not 1",
    "benchmark: {targets: [local, local]}": r"benchmark\.targets\[1\]: local is there twice",
    "benchmark: {runs: 0}": r"benchmark\.runs: must be a whole number of at least 1, not 0",
    "benchmark: {depths: [0, x]}": r"benchmark\.depths\[1\]: must be a whole number of at least 0, not 'x'",
    "prefill: [16]": r"prefill\[0\]: is 16, and must be a list: \[\[16, 128\]\] is one file with both lengths",
    "prefill: [[1]]": r"prefill\[0\]: must be a list of whole numbers of at least 2, such as \[16, 128\], not \[1\]",
    "prefill: []": r"prefill: must be a list of at least one",
    "kv_cache_len: [true]": r"kv_cache_len\[0\]: must be a whole number of at least 2, not True",
    "kv_cache_len: 512": r"kv_cache_len: must be a list of at least one, such as \[a, b\], not 512",
    "kv_cache_len: [64, 64]": r"two cells are both a-none-kv64: remove what is there twice",
    "kv_cache_dtype: [int4]": r"kv_cache_dtype\[0\]: is 'int4'; use float32, float16, int8",
    "format: tflit": r"format: is 'tflit'; did you mean tflite\?",
    "verify: maybe": r"verify: must be true, false, or how many tokens to compare, not 'maybe'",
    "verify: 0": r"verify: must be true, false, or how many tokens",
    "keep_files: 3": r"keep_files: must be true or false, not 3",
    "calibration: 7": r"calibration: must be text, not 7",
    "verify: true\nverify: false": r"s\.yaml, line 4: the key 'verify' is there twice",
    "<<: {verify: true}": r"line 3: could not determine a constructor",
    "x: !!python/object/apply:os.system [ls]": r"line 3: could not determine a constructor",
    "x: [1": r"s\.yaml, line \d",
    "x: " + "[" * 5000: r"s\.yaml",
    "calibration: " + "x" * 5000: r"calibration: .*does not exist",
    'calibration: "a\\0b"': r"calibration: .*does not exist",
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line[:40])
def test_a_mistake_is_named_with_its_key(line, written):
    with pytest.raises(SweepError, match=WRONG[line]) as raised:
        read_sweep(written(f"models: [a]\nrecipes: [none]\n{line}\n"))
    assert "s.yaml" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty: it needs models and recipes"),
        ("- 1\n- 2\n", r"must be a mapping of keys to values, not \[1, 2\]"),
        ("recipes: [none]", "has no 'models': a list of checkpoints"),
        ("models: [a]", r"has no 'recipes': a list of names \(flatlm recipes lists them\)"),
        ("models: [c]\nrecipes: [none]", r"models\[0\]\.checkpoint: .*c does not exist"),
        ("models: [{name: x}]\nrecipes: [none]", r"models\[0\]: has no 'checkpoint'"),
        ("models: [{checkpoint: a, lorra: b}]\nrecipes: [none]", r"models\[0\]\.lorra: unknown key; did you mean lora\?"),
        ("models: [3]\nrecipes: [none]", r"models\[0\]: must be a mapping"),
        ("models: [a]\nrecipes: [dynamic_int9]", r"recipes\[0\]: unknown recipe 'dynamic_int9'; did you mean 'dynamic_int8'\?"),
        ("models: [a]\nrecipes: [gone.json]", r"recipes\[0\]: .*gone\.json cannot be read"),
        ("models: [a]\nrecipes: [none, none]", "two cells are both a-none"),
        ("models: [a, {checkpoint: b, name: A}]\nrecipes: [none]", "two cells are both A-none"),
        ("models: [a]\nrecipes: [calibrated_int4_channel]", r"recipes\[0\]: recipe calibrated_int4_channel needs text to calibrate on"),
        (f"models: [{{checkpoint: a, name: {'x' * 200}}}]\nrecipes: [none]", "has too long a name for a file"),
        (f"models: [a]\nrecipes: [none]\nkv_cache_len: {list(range(2, 10_100))}", "has 10098 cells, and 10000 are the most"),
        ("#" * (1 << 20) + "\n", "larger than 1048576 bytes"),
    ],
)
def test_what_is_no_sweep_is_refused(content, match, written):
    with pytest.raises(SweepError, match=match):
        read_sweep(written(content))


def test_all_mistakes_come_in_one_error(written):
    with pytest.raises(SweepError) as raised:
        read_sweep(written("models: [c]\nrecipes: [nothing]\nformt: tflite\nverify: 1.5\n"))
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("s.yaml: 4 mistakes:")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["models[0].checkpoint", "recipes[0]", "verify", "formt"]


def test_laughs_are_not_expanded(written):
    lines = [
        "a: &a [lol, lol]",
        *(f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]" for old, new in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)),
    ]
    with pytest.raises(SweepError, match="unknown key") as raised:
        read_sweep(written("\n".join(lines) + "\nmodels: *p\n"))
    assert len(str(raised.value)) < 5000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SweepError, match=r"none\.yaml cannot be read: No such file"):
        read_sweep(tmp_path / "none.yaml")


def test_names_are_fit_for_paths():
    assert plain_name("../../etc/pass wd") == "_.._etc_pass_wd"
    assert plain_name(".") == "_"


def test_the_documented_file_is_read(tmp_path):
    text = (Path(__file__).resolve().parents[3] / "docs" / "sweep.md").read_text("utf-8")
    file = tmp_path / "sweep.yaml"
    file.write_text(text.split("```yaml\n")[1].split("```")[0])
    for folder in ("checkpoints/SmolLM2-135M", "checkpoints/Llama-3.2-1B", "adapters/stories", "tokenizers/llama", "my_tasks"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("text/calibration.json", "text/held_out.json", "tools/benchmark_model", "smollm.tune/recipe.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    write_recipe(
        tmp_path / "smollm.tune" / "recipe.json", get_recipe("dynamic_int8").mixed("tuned", "dynamic_int8", {"lm_head.*": "float32"})
    )
    cells = read_sweep(file).cells
    assert len(cells) == 2 * 3 * 2 * 2 * 2
    assert cells[0].benchmark and cells[0].benchmark.ssh_options == ("Port=2222",)
    assert cells[0].evaluate and cells[0].evaluate.tasks == TaskRequest(
        ("arc_easy", "my_task"), limit=200, include_path=tmp_path / "my_tasks"
    )
