"""The harness's questions to an exported file: its answers are those of the harness's own model of the same weights, item by item."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flatlm.errors import FlatlmError, OutputError, RuntimeFileError, TextError, TokenizerError
from flatlm.generative.harness.tasks import TaskRequest, evaluate_tasks, run_tasks
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from tests.harness_tasks import copy_tasks, offline_harness

if TYPE_CHECKING:
    from flatlm.generative.harness.model import FlatlmLM

ROOT = Path(__file__).parents[3]
CONTEXT = 160
TASKS = ["tiny_choice", "tiny_cloze", "tiny_rolling", "tiny_generate"]
CHAT = (
    "{{bos_token}}{% for m in messages %}[{{m['role']}}] {{m['content']|trim}}\n{% endfor %}{% if add_generation_prompt %}[me] {% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{raise_exception('no system')}}{% endif %}" + CHAT
ENTRY_POINT = "[torch.backends]\nflatlm = flatlm.generative.harness.plugin:register\n"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with offline_harness(home):
        yield home


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    return shared / "checkpoints" / "stories260K"


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories") / "stories.tflite"
    lengths = {"prefill_lengths": (16, 64), "kv_cache_len": CONTEXT, "prefill_logits": True}
    export(ExportRequest(checkpoint, path, recipe=get_recipe("none"), **lengths))
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def talker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with a chat template."""
    return changed(checkpoint, tmp_path_factory.mktemp("talker"), chat_template=REFUSES)


def changed(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """A copy of the checkpoint with other settings of its tokenizer."""
    for source in checkpoint.iterdir():
        shutil.copyfile(source, folder / source.name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))
    return folder


def open_model(file: Path, tokenizer: Path, **options: Any) -> "FlatlmLM":
    from flatlm.generative.harness.model import FlatlmLM

    return FlatlmLM(file, tokenizer=str(tokenizer), progress=lambda *_: None, **options)


def run(model: Any, names: list[str], tasks: Path, **settings: Any) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=100, **settings)


def compare(file: Path, checkpoint: Path, names: list[str], tasks: Path, options: Mapping[str, Any], **settings: Any) -> tuple[int, int]:
    """All answers and scores of the file and of transformers; how many numbers and texts were compared."""
    arguments = {"pretrained": str(checkpoint), "dtype": "float32", "device": "cpu", "max_length": CONTEXT, **options}
    theirs = run("hf", names, tasks, model_args=arguments, **settings)
    model = open_model(file, checkpoint, batch_size=8, device="cuda:0", **options)
    ours = run(model, names, tasks, **settings)
    model.close()
    numbers = texts = 0
    for task, samples in theirs["samples"].items():
        for a, b in zip(ours["samples"][task], samples, strict=True):
            assert a["arguments"] == b["arguments"]
            for (x,), (y,) in zip(a["resps"], b["resps"], strict=True):
                if task == "tiny_generate":
                    assert x == y
                    texts += 1
                    continue
                (value, *greedy), (expected, *best) = ([z] if isinstance(z, float | str) else z for z in (x, y))
                assert float(value) == pytest.approx(float(expected), abs=1e-4)
                assert [str(z) for z in greedy] == [str(z) for z in best]
                numbers += 1
    for task, scores in theirs["results"].items():
        for metric, value in scores.items():
            assert ours["results"][task][metric] == (value if isinstance(value, str | dict) else pytest.approx(value, rel=1e-4))
    return numbers, texts


@pytest.mark.parametrize("options", [{}, {"max_length": 40}, {"add_bos_token": False}], ids=["plain", "cut", "bare"])
def test_every_answer_is_that_of_transformers(file, checkpoint, tasks, options) -> None:
    assert compare(file, checkpoint, TASKS, tasks, options) == (37, 4)


@pytest.mark.parametrize("stops", [["zzz"], ["Lily", " the ", "</s>", "\n"]])
def test_texts_end_where_transformers_ends_them(file, checkpoint, tasks, stops) -> None:
    kwargs = {"until": stops, "max_gen_toks": 60}
    assert compare(file, checkpoint, ["tiny_generate"], tasks, {}, gen_kwargs=kwargs, num_fewshot=1) == (0, 4)


def test_a_special_token_ends_a_text(file, checkpoint, tasks, tmp_path) -> None:
    """It is seen where stops are looked for, though it is left out of the text."""
    marked = changed(checkpoint, tmp_path, additional_special_tokens=["."])
    kwargs = {"until": ["."], "max_gen_toks": 60}
    assert compare(file, marked, ["tiny_generate"], tasks, {}, gen_kwargs=kwargs) == (0, 4)


def test_chats_are_those_of_transformers(file, talker, tasks) -> None:
    settings = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be kind."}
    assert compare(file, talker, ["tiny_choice", "tiny_generate"], tasks, {}, **settings) == (28, 4)


def test_tokens_are_those_of_transformers(file, talker) -> None:
    from lm_eval.models.huggingface import HFLM

    texts = ["Once", " Once upon", "<s>Once", "</s> Once", "a\n\nb ", "日本", "</s>"]
    for options in ({}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 2}):
        theirs = HFLM(pretrained=str(talker), dtype="float32", device="cpu", **options)
        ours = open_model(file, talker, **options)
        assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
        for text in texts:
            assert ours.tok_encode(text) == theirs.tok_encode(text)
            assert ours.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)
            assert ours._text.encode_prompt(text) == theirs.tok_batch_encode([text])[0][0].tolist()
        said = [{"role": "system", "content": "s"}, {"role": "user", "content": "u "}, {"role": "me", "content": " The answer is  "}]
        for history, answer in ((said, False), (said[:2], True), ([*said[1:2], {"role": "me", "content": "A:"}], False)):
            assert ours.apply_chat_template(history, answer) == theirs.apply_chat_template(history, answer)
        assert ours.chat_template(True) == theirs.chat_template(True)
        ours.close()


def test_continuations_at_the_end_of_one_text(file, checkpoint) -> None:
    """They are read together, in more than one call, and each is scored as if it were alone."""
    model = open_model(file, checkpoint)
    ids = [1, *model.tokenizer.encode("Once upon a time there was a dog. " * 20, add_special_tokens=False)[:140]]
    pairs = [(None, ids[:-n], [*ids[-n:], last]) for n, last in ((100, 5), (3, 400), (139, 5), (70, 6))] + [(None, ids, [8])]
    alone = [model._loglikelihood_tokens([pair])[0] for pair in pairs]
    assert model._loglikelihood_tokens(pairs) == [(pytest.approx(score, abs=1e-4), greedy) for score, greedy in alone]
    assert len({round(score, 2) for score, _ in alone}) == len(pairs)


def test_evaluate_tasks_reports_what_the_harness_does(file, checkpoint, tasks) -> None:
    progress = []
    found = evaluate_tasks(
        file, ["tiny_stories", "tiny_generate"], tokenizer=checkpoint, include_path=tasks, limit=4, num_fewshot=1,
        progress=lambda *step: progress.append(step),
    )  # fmt: skip
    expected = run(open_model(file, checkpoint), ["tiny_stories", "tiny_generate"], tasks, limit=4, num_fewshot=1)["results"]
    assert found.tasks["tiny_choice"] == {
        name: expected["tiny_choice"][f"{name},none"] for name in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
    }
    assert found.tasks["tiny_stories"]["acc"] == expected["tiny_stories"]["acc,none"]
    assert set(found.tasks["tiny_generate"]) == {"exact_match,first-word", "exact_match,first-word_stderr"}
    assert found.to_dict()["samples"] == {"tiny_choice": 4, "tiny_cloze": 4, "tiny_generate": 4}
    assert (found.shots["tiny_choice"], found.versions["tiny_generate"], found.scored_by_prefill) == (1, 2.0, True)
    assert progress[-1] in (("generate_until", 4, 4), ("loglikelihood", 20, 20))
    assert (found.requests, found.found) == (24, 0)


ENDED = """
import os, signal, sys
from pathlib import Path
from flatlm.generative.harness.tasks import evaluate_tasks
file, tokenizer, tasks, work = map(Path, sys.argv[1:])
def progress(stage, done, total):
    if stage == "loglikelihood" and done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
evaluate_tasks(file, ["tiny_choice"], tokenizer=tokenizer, include_path=tasks, work=work, progress=progress)
"""


def environment(*folders: Path) -> dict[str, str]:
    paths = [str(folder) for folder in (*folders, ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}


def test_a_run_that_was_killed_goes_on(file, checkpoint, tasks, tmp_path, monkeypatch) -> None:
    work = tmp_path / "work"
    command = [sys.executable, "-c", ENDED, *map(str, (file, checkpoint, tasks, work))]
    assert subprocess.run(command, env=environment(), timeout=120).returncode == -signal.SIGKILL
    calls = []
    read = Runner._read
    monkeypatch.setattr(Runner, "_read", lambda self, ids, prefill: calls.append(len(ids)) or read(self, ids, prefill))

    def evaluate(file: Path, **more: Any) -> tuple[Any, int]:
        calls.clear()
        found = evaluate_tasks(file, ["tiny_choice"], tokenizer=checkpoint, include_path=tasks, **more)
        return found, sum(calls)

    whole, all_tokens = evaluate(file)
    resumed, tokens = evaluate(file, work=work)
    assert resumed.tasks == whole.tasks
    assert (whole.found, resumed.found, resumed.requests) == (0, 9, 28)
    assert 0 < tokens < all_tokens
    again, tokens = evaluate(file, work=work)
    assert (again.tasks, again.found, tokens) == (whole.tasks, 28, 0)

    other = tmp_path / "other.tflite"  # one byte of a weight differs
    content = bytearray(file.read_bytes())
    content[-1000] ^= 64
    other.write_bytes(content)
    assert evaluate(other, work=work)[0].found == 0
    assert evaluate(file, work=work, model_args={"add_bos_token": False})[0].found == 0
    assert evaluate(file, work=work)[0].found == 28


def test_a_run_of_its_own_folder_goes_on_and_clears_up(file, checkpoint, tasks, tmp_path) -> None:
    request = TaskRequest(("tiny_choice",), num_fewshot=0, limit=6, include_path=tasks)

    def stop(kind: str, done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(file, request, checkpoint=checkpoint, work=tmp_path, progress=stop)
    assert len(list(tmp_path.iterdir())) == 1
    other = TaskRequest(("tiny_choice",), num_fewshot=0, limit=2, include_path=tasks)
    assert run_tasks(file, other, checkpoint=checkpoint, work=tmp_path).found == 0
    resumed = run_tasks(file, request, tokenizer=checkpoint, work=tmp_path)
    assert (resumed.found, resumed.requests) == (9, 24), "another run that finished left its folder alone"
    assert list(tmp_path.iterdir()) == []
    whole = evaluate_tasks(file, ["tiny_choice"], tokenizer=checkpoint, num_fewshot=0, limit=6, include_path=tasks)
    assert (resumed.tasks, resumed.shots, resumed.samples) == (whole.tasks, {"tiny_choice": 0}, {"tiny_choice": 6})
    rest = {key: value for key, value in resumed.to_dict().items() if key != "tasks"}
    assert resumed.to_evaluation() == {"tasks": whole.tasks, "task_runs": rest}


def test_saved_answers_that_cannot_be_read(file, checkpoint, tmp_path) -> None:
    model = open_model(file, checkpoint, work=tmp_path)
    model.close()
    (saved,) = tmp_path.glob("answers-*.db")
    saved.write_bytes(b"no database" * 100)
    with pytest.raises(OutputError, match=r"answers-.*\.db: answers cannot be saved there"):
        open_model(file, checkpoint, work=tmp_path)
    with pytest.raises(OutputError, match="cannot be made"):
        open_model(file, checkpoint, work=saved)


def test_the_harness_is_told_of_each_answer(file, checkpoint, tasks, tmp_path) -> None:
    """For its own --use_cache, which keeps them."""
    first, second = (open_model(file, checkpoint) for _ in range(2))
    results = [run(model, ["tiny_choice"], tasks, use_cache=str(tmp_path / "cache"))["results"] for model in (first, second)]
    assert results[0] == results[1]
    assert (first.requests, second.requests) == (28, 0)
    told = []
    first.set_cache_hook(type("Hook", (), {"add_partial": lambda self, *answer: told.append(answer)})())
    asked = [type("Asked", (), {"args": (text,)}) for text in ("One day", "The dog ran")]
    scores = first.loglikelihood_rolling(asked)
    assert told == [("loglikelihood_rolling", request.args, score) for request, score in zip(asked, scores, strict=True)]


def test_sampled_text(file, checkpoint) -> None:
    class Asked:
        def __init__(self, context: str, **kwargs: Any) -> None:
            self.args = (context, kwargs)

    def texts(requests: list[Asked], **options: Any) -> list[str]:
        model = open_model(file, checkpoint, **options)
        found = model.generate_until(requests)
        model.close()
        return found

    drawn = {"do_sample": True, "temperature": 1.2, "max_gen_toks": 12, "until": ["zzz"]}
    asked = [Asked(context, **drawn) for context in ("Once upon", "One day", "Once upon")]
    found = texts(asked)
    assert found[0] != found[2], "the same question twice, two draws"
    assert texts(asked) == found, "the same draws every time"
    assert texts(asked[1:2]) == found[1:2], "whatever else is asked"
    assert texts(asked, seed=5) != found
    greedy = {"max_gen_toks": 12, "until": ["zzz"]}
    assert texts([Asked("Once upon", **{**drawn, "top_k": 1})]) == texts([Asked("Once upon", **greedy)])


def test_what_is_asked_of_a_text() -> None:
    from flatlm.generative.harness.generation import GenerationSettings

    def read(**kwargs: Any) -> GenerationSettings:
        return GenerationSettings.read(kwargs, eos="</s>", max_tokens=256)

    assert read(until="\n") == GenerationSettings(("\n", "</s>"), 256, 0.0)
    assert read(do_sample=False, temperature=0.7, max_new_tokens=3) == GenerationSettings(("</s>",), 3, 0.0)
    assert read(temperature=0.7, top_p=0.9, num_beams=1) == GenerationSettings(("</s>",), 256, 0.7, 50, 0.9)
    assert read(do_sample=True, temperature=1, top_k=0).top_k is None
    with pytest.raises(RuntimeFileError, match="num_beams, repetition_penalty cannot be heeded"):
        read(num_beams=4, repetition_penalty=1.1)
    with pytest.raises(RuntimeFileError, match="do_sample needs a temperature above 0"):
        read(do_sample=True)


def test_thoughts_are_left_out(file, checkpoint) -> None:
    asked = type("Asked", (), {"args": ("Once upon a time", {"max_gen_toks": 30, "until": ["zzz"]})})
    model = open_model(file, checkpoint)
    (whole,) = model.generate_until([asked])
    ids = model.tokenizer.encode(whole, add_special_tokens=False)
    assert model.tokenizer.decode(ids) == whole
    last = max(i for i, token in enumerate(ids) if token == ids[5])
    after = open_model(file, checkpoint, think_end_token="there").generate_until([asked])[0]
    by_token = open_model(file, checkpoint, think_end_token=ids[5]).generate_until([asked])[0]
    assert "there" in whole and after == whole.split("there")[-1].lstrip()
    assert by_token == model.tokenizer.decode(ids[last + 1 :]).lstrip()


@pytest.mark.slow
def test_lm_eval_finds_the_model_by_its_entry_point(file, checkpoint, tasks, tmp_path) -> None:
    """The harness's own command, with what an installed FlatLM says of itself."""
    info = tmp_path / "site" / "flatlm_entry-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flatlm-entry\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    command = Path(sys.executable).with_name("lm_eval")
    if not command.exists():
        pytest.skip("needs the command lm_eval beside python")
    arguments = f"path={file},tokenizer={checkpoint},work={tmp_path / 'work'}"
    more = ["--tasks", "tiny_choice", "--include_path", str(tasks), "--batch_size", "4", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [command, "--model", "flatlm", "--model_args", arguments, *more],
        env=environment(info.parent), capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    here = evaluate_tasks(file, ["tiny_choice"], tokenizer=checkpoint, include_path=tasks, work=tmp_path / "work")
    assert json.loads(written.read_text())["results"]["tiny_choice"]["acc,none"] == here.tasks["tiny_choice"]["acc"]
    assert here.found == 28, "the command's answers were saved for this one"


def test_the_entry_point_leaves_other_programs_alone() -> None:
    def printed(script: str) -> list[str]:
        command = [sys.executable, "-c", f"import sys; {script}"]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.split()

    register = "from flatlm.generative.harness.plugin import register; register(); register();"
    assert not {"lm_eval", "torch", "numpy"} & set(printed(f"{register} print(*sys.modules)"))
    models = printed(f"import lm_eval; {register} from lm_eval.api.registry import model_registry; print(*model_registry.keys())")
    assert {"flatlm", "hf", "vllm"} <= set(models)


@pytest.mark.parametrize(
    ("names", "more", "kind", "message"),
    [
        ([], {}, TextError, "no task was named"),
        (["tiny_choice"], {"limit": 0}, TextError, "a limit of 0 questions"),
        (["tiny_choice"], {"num_fewshot": -1}, TextError, "-1 examples"),
        (["tiny_choice"], {"tokenizer": None}, TokenizerError, "stories.tflite has no tokenizer of its own: give its directory"),
        (["tiny_choice"], {"tokenizer": ROOT / "flatlm/assets/demo_model"}, TokenizerError, "is the wrong tokenizer: it gives other ids"),
        (["tiny_choice"], {"apply_chat_template": True}, TokenizerError, "comes with no chat template"),
        (["tiny_choice"], {"include_path": Path("nowhere")}, TextError, "nowhere is not a directory of tasks"),
        (["tiny_choice"], {"model_args": {"max_length": 2}}, TextError, "continuation .* has .* tokens, and .* a context of 2"),
        (["tiny_choice"], {"model_args": {"max_length": 500}}, RuntimeFileError, "max_length 500 is not within its context of 160"),
        (["tiny_choice"], {"model_args": {"max_lenght": 5}}, RuntimeFileError, "max_lenght is not known; there are path, tokenizer"),
        (["tiny_generate"], {"model_args": {"max_length": 20}}, RuntimeFileError, "24 tokens are to be generated .* in a context of 20"),
        (["tiny_far"], {}, TextError, "tiny_far: the questions cannot be read .*; what is on the Hugging Face hub needs a network"),
    ],
)
def test_bad_input(file, checkpoint, tasks, names, more, kind, message) -> None:
    with pytest.raises(kind, match=message) as caught:
        evaluate_tasks(file, names, **{"tokenizer": checkpoint, "include_path": tasks, **more})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_unknown_task_is_told_its_neighbours(file, checkpoint, tasks) -> None:
    with pytest.raises(TextError, match=r"arc_eazy is no task .*; did you mean arc_easy"):
        evaluate_tasks(file, ["tiny_choice", "arc_eazy"], tokenizer=checkpoint, include_path=tasks)


def test_without_the_harness(file, checkpoint, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("flatlm.generative.harness.tasks.find_spec", lambda name: None if name == "lm_eval" else found(name))
    with pytest.raises(FlatlmError, match=r"pip install 'flatlm\[lm-eval\]'"):
        evaluate_tasks(file, ["tiny_choice"], tokenizer=checkpoint)
