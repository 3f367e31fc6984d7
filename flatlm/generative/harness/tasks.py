"""Scores of an exported file in tasks of EleutherAI's lm-evaluation-harness (hellaswag, arc_easy, ..., or one's own)."""

import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flatlm.convert.quiet import quiet
from flatlm.errors import FlatlmError, RuntimeFileError, TextError
from flatlm.generative.evaluation.journal import journal_directory, work_folder
from flatlm.generative.harness.request import TaskRequest
from flatlm.progress import Progress

if TYPE_CHECKING:
    from flatlm.generative.harness.model import FlatlmLM

__all__ = ["TaskRequest", "TaskResults", "evaluate_tasks", "harness_version", "require_tasks", "run_tasks"]


@dataclass(frozen=True)
class TaskResults:
    """What the harness reports, by task or group of tasks."""

    tasks: Mapping[str, Mapping[str, float]]
    """Of each metric its value ("acc"; "exact_match,strict" where a filter named strict made it), and its standard error ("acc_stderr")."""
    versions: Mapping[str, float | str]
    """Of the tasks, as they are defined in the harness."""
    shots: Mapping[str, int]
    """Examples before each question."""
    samples: Mapping[str, int]
    """Questions that were asked."""
    requests: int
    """Texts that the model was given to score or to continue."""
    found: int
    """How many of them an earlier run had answered, or were asked twice."""
    scored_by_prefill: bool
    """False: the file was exported without --prefill-logits, so that each token took a decode step."""
    chat_template: bool
    """Whether questions were asked in the form of a conversation."""
    lm_eval: str
    """The harness's version."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def to_evaluation(self) -> dict[str, Any]:
        """The same for an evaluation's JSON, where the scores stand beside the perplexity: `tasks`, and the rest as `task_runs`."""
        rest = self.to_dict()
        return {"tasks": rest.pop("tasks"), "task_runs": rest}


def run_tasks(
    file: Path,
    request: TaskRequest,
    *,
    tokenizer: Path | None = None,
    checkpoint: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> TaskResults:
    """`evaluate_tasks`, with a folder of its own in `work` (by default in the user's cache), which goes when it has finished.

    The same call goes on where an earlier one was ended. The tokenizer is that of the directory `tokenizer`, else the bundle's own, else
    the checkpoint's. Raises what `evaluate_tasks` does, and OutputError where `work` cannot be written.
    """
    if tokenizer is None and file.suffix != ".litertlm":
        tokenizer = checkpoint
    asked = [str(path and path.absolute()) for path in (file, tokenizer)], asdict(request)
    key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]
    with work_folder(work or journal_directory(), f"tasks-{key}") as folder:
        return evaluate_tasks(
            file,
            request.names,
            tokenizer=tokenizer,
            limit=request.limit,
            num_fewshot=request.num_fewshot,
            apply_chat_template=request.apply_chat_template,
            include_path=request.include_path,
            work=folder,
            progress=progress,
        )


def evaluate_tasks(
    file: Path,
    tasks: Sequence[str],
    *,
    tokenizer: Path | None = None,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    include_path: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    model_args: Mapping[str, Any] | None = None,
    harness_args: Mapping[str, Any] | None = None,
) -> TaskResults:
    """Run tasks on a `.tflite` file or a `.litertlm` bundle; the same weights score as in the harness's own model of transformers.

    `tokenizer`: its directory; a bundle has its own. `limit`: questions of each task, or a part of them where below 1. `num_fewshot`:
    examples before each question; by default the task's own number. `include_path`: a directory of one's own tasks. `work`: a directory
    where answers are kept as they come; the same call goes on where an earlier one was ended. `model_args`: more of `HarnessOptions`;
    `harness_args`: more of lm_eval.simple_evaluate, such as system_instruction and gen_kwargs. `progress` is called with the kind of
    request, and how many of how many are answered. What anyone prints meanwhile is dropped (`convert.quiet`).

    Raises RuntimeFileError, TokenizerError, and TextError for tasks that are not known or whose data cannot be had.
    """
    _require_possible(tasks, limit, num_fewshot)
    require_harness()
    with quiet(), _offline_where_unreachable():
        from lm_eval.evaluator import simple_evaluate

        from flatlm.generative.harness.model import FlatlmLM

        model = FlatlmLM(file, progress=progress, **{"tokenizer": tokenizer, "work": work, **(model_args or {})})
        try:
            if apply_chat_template:
                model.chat_template(True)  # which says what is missing
            settings = {
                "task_manager": _task_manager(tasks, include_path),
                "limit": limit,
                "num_fewshot": num_fewshot,
                "apply_chat_template": apply_chat_template,
                "fewshot_as_multiturn": apply_chat_template,
                "log_samples": False,
            }
            found = _run(model, simple_evaluate, list(tasks), {**settings, **(harness_args or {})})
            return _results(found, model, chat_template=apply_chat_template)
        finally:
            model.close()


def harness_version() -> str:
    """RuntimeFileError, with the way out, where lm_eval is not installed. Nothing is loaded."""
    if find_spec("lm_eval") is None:
        raise RuntimeFileError("tasks need lm_eval: pip install 'flatlm[lm-eval]'")
    return version("lm_eval")


def require_tasks(request: TaskRequest) -> None:
    """What can be wrong with a request is found before any work, but for its data. Raises RuntimeFileError and TextError."""
    _require_possible(request.names, request.limit, request.num_fewshot)
    require_harness()
    with quiet(), _offline_where_unreachable():
        _task_manager(request.names, request.include_path)


def require_harness() -> None:
    """RuntimeFileError, with the way out, where lm_eval is missing or cannot be imported."""
    harness_version()
    try:
        with quiet():
            import lm_eval.evaluator  # noqa: F401
    except (ImportError, TypeError) as error:
        # lm_eval 0.4.12 and 0.4.13 use what typing_extensions has since 4.13, and do not say so; LiteRT's converter wants an older one.
        installed = ", ".join(f"{name} {version(name)}" for name in ("lm_eval", "typing_extensions"))
        raise RuntimeFileError(f"{installed} cannot be used together ({error}): pip install 'lm-eval==0.4.11'") from error


def _require_possible(tasks: Sequence[str], limit: int | float | None, num_fewshot: int | None) -> None:
    if not tasks:
        raise TextError("no task was named; `lm_eval ls tasks` lists what the harness has")
    if limit is not None and limit <= 0:
        raise TextError(f"a limit of {limit:g} questions: ask at least one")
    if num_fewshot is not None and num_fewshot < 0:
        raise TextError(f"{num_fewshot} examples before each question: it is 0 or more")


def _task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """What finds the tasks: in one's own directory where they all are, else among the harness's thousands, too. Raises TextError."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        if not include_path.is_dir():
            raise TextError(f"{include_path} is not a directory of tasks")
        try:
            manager = TaskManager(include_path=str(include_path), include_defaults=False)
        except Exception as error:  # of whatever YAML there is
            said = " ".join(str(error).split())
            raise TextError(f"the tasks in {include_path} cannot be read: {said}") from error
        if all(manager.match_tasks([task]) for task in tasks):
            return manager
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            near = get_close_matches(task, manager.all_tasks, 5)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
            raise TextError(f"{task} is no task that lm-evaluation-harness knows; {hint}")
    return manager


def _run(model: "FlatlmLM", simple_evaluate: Callable[..., Any], tasks: list[str], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The harness's report. What goes wrong before the model is asked anything is about the tasks: a TextError, in one line."""
    try:
        results: Mapping[str, Any] = simple_evaluate(model=model, tasks=tasks, **settings)
        return results
    except FlatlmError:
        raise
    except Exception as error:
        if model.requests:
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise TextError(
            f"{', '.join(tasks)}: the questions cannot be read ({type(error).__name__}: {reason}); what is on the Hugging Face hub needs a "
            "network, or a cache that was filled with one (HF_HOME)"
        ) from error


def _results(found: Mapping[str, Any], model: "FlatlmLM", *, chat_template: bool) -> TaskResults:
    scores: dict[str, dict[str, float]] = {}
    for task, metrics in found["results"].items():
        scores[task] = {}
        for key, value in metrics.items():
            metric, comma, made_by = key.partition(",")
            if comma and isinstance(value, int | float):  # not the task's alias, nor an error that is "N/A"
                name, error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
                scores[task][name + (f",{made_by}" if made_by != "none" else "") + ("_stderr" if error else "")] = float(value)
    return TaskResults(
        tasks=scores,
        versions=dict(found["versions"]),
        shots=dict(found["n-shot"]),
        samples={task: counts["effective"] for task, counts in found["n-samples"].items()},
        requests=model.requests,
        found=model.found,
        scored_by_prefill=model.scores_by_prefill,
        chat_template=chat_template,
        lm_eval=version("lm_eval"),
    )


@contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Tell the hub's libraries where there is no network: by themselves they try for half a minute for each set of data."""
    import datasets.config  # type: ignore[import-untyped]
    import huggingface_hub.constants as hub

    settings = [(module, name, getattr(module, name)) for module, name in ((hub, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE"))]
    try:
        if not any(environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
            try:
                socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, None)
            except OSError:
                for module, name, _ in settings:
                    setattr(module, name, True)
        yield
    finally:
        for module, name, value in settings:
            setattr(module, name, value)
