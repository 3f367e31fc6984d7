"""A checkpoint that is to be run: its file, from the cache or exported into it now. Here, or in a process of its own.

What exports loads some 400 MB of libraries, which a process cannot give back: who goes on for hours has it done apart.
Run as a module this is that process: a pickled path and its `EngineConfig`, from our own code, on its stdin, which stays open for as
long as somebody wants the file; on its stdout pickled progress, and at last the file's path, or an error.
"""

import os
import pickle
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from flatlm import errors
from flatlm.errors import ExportError, RuntimeFileError
from flatlm.generative.engine_config import EngineConfig
from flatlm.generative.own_processes import GRACE_S, ending_of, environment_of_our_own, first_message, kill_session
from flatlm.progress import Progress
from flatlm.utilities.reading import Reading
from flatlm.utilities.recipe_file import find_recipe


def exported(path: Path, config: EngineConfig, progress: Progress | None = None) -> Path:
    """The file of a checkpoint (a directory, or a `.gguf` file), proved where it is made now. What exports is imported for this alone.

    Raises a FlatlmError for bad input, and VerificationFailed where the file is too far from the checkpoint.
    """
    recipe = find_recipe(config.recipe) if isinstance(config.recipe, str) else config.recipe
    from flatlm.generative.export_cache import cached_export
    from flatlm.utilities.checkpoints.open import open_checkpoint
    from flatlm.utilities.exporter import ExportRequest, plan_export

    custom, modules = (None if file is None else Path(file) for file in (config.custom, config.custom_module_map))
    request = ExportRequest(
        path,
        path,
        recipe,
        None if config.prefill_lengths is None else tuple(config.prefill_lengths),
        tuple(config.kv_cache_len) if isinstance(config.kv_cache_len, list) else config.kv_cache_len,
        reading=Reading(config.family, tuple(config.ignored_config_keys), custom=custom, module_map=modules),
        kv_cache_dtype=config.kv_cache_dtype,
        verify_length=config.verify_length,
    )
    with open_checkpoint(path) as checkpoint:
        kind = plan_export(checkpoint, request).shape.facts.get("kind")
    if kind is not None:
        raise RuntimeFileError(f"{path} is of the kind {kind}, and this writes on with decoders: see flatlm generate -p, flatlm.AutoLoader")
    return cached_export(request, verify=config.verify, progress=progress)


def exported_apart(path: Path, config: EngineConfig, progress: Progress | None = None) -> Path:
    """The same in a process of its own, which ends with this one, and with what is raised here, such as by Ctrl-C.

    What it raises is raised here; a fault in FlatLM as a RuntimeError. ExportError where it is lost.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_of_our_own(),
        start_new_session=True,  # Ctrl-C is for this process alone, which ends that one
    )
    try:
        answer = _answer(process, (path, config), progress)
    finally:
        _end(process)
    if answer is None:
        raise ExportError(
            f"{path}: the process that was to export it {ending_of(process.returncode)}; where it does so again, "
            "let flatlm export write a file, here or on a larger machine, and give that"
        )
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(process: "subprocess.Popen[bytes]", job: tuple[Path, EngineConfig], progress: Progress | None) -> Path | Exception | None:
    """None: it died without one."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):  # it died early
        process.stdin.write(pickle.dumps(job))
        process.stdin.flush()
    with suppress(EOFError, pickle.UnpicklingError):
        while isinstance(message := pickle.load(process.stdout), tuple):
            if progress is not None:
                progress(*message)
        found: Path | Exception = message
        return found
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It ends when its stdin does; one that does not is killed."""
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:
        kill_session(process)
        process.wait()
        process.stdout.close()


def _main() -> None:
    path, config = first_message()
    with os.fdopen(os.dup(1), "wb") as line:
        os.dup2(2, 1)  # an author's module may print

        def send(message: object) -> None:
            pickle.dump(message, line)
            line.flush()

        try:
            answer: Path | Exception = exported(path, config, lambda *far: send(far))
        except Exception as error:
            answer = _portable(error)
            answer.add_note(traceback.format_exc())  # for --debug
        send(answer)


def _portable(error: Exception) -> Exception:
    """The same, of a class that the other process has and can make anew."""
    if isinstance(error, OSError) and error.strerror is not None:
        return OSError(error.errno, error.strerror, error.filename)
    for kind in type(error).__mro__:
        if kind.__module__ == errors.__name__:
            return kind(str(error))  # type: ignore[no-any-return]
    return RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        _main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(0)  # torch's and the runtime's destructors take time, and log
