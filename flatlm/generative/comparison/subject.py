"""What takes turns in a comparison: a file, and a name that tells it from the others."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.session import Transport, local_transport

GGUF = ".gguf"
SUFFIXES = (".tflite", ".litertlm", GGUF)
_WORKER = Path(__file__).with_name("llama_cpp_worker.py")


@dataclass(frozen=True)
class Subject:
    """One side: a `.tflite` or `.litertlm` in LiteRT, whichever tool exported it, or a `.gguf` in llama.cpp."""

    name: str
    file: Path

    @property
    def gguf(self) -> bool:
        return self.file.suffix == GGUF

    def transport(self, *, context: int, llama_cpp_python: Path | None) -> Transport:
        """How its process is started. `context`: tokens that llama.cpp makes room for; `llama_cpp_python`: an interpreter that has it."""
        if not self.gguf:
            return local_transport(self.file)

        def lost(how: str, line: str) -> RuntimeFileError:
            return RuntimeFileError(f"{self.file}: the llama.cpp process that measures it {how}{line and f': {line}'}")

        command = (str(llama_cpp_python or sys.executable), str(_WORKER), str(context))
        return Transport(command, str(self.file), str(self.file), lost)


def name_subjects(files: Sequence[Path]) -> tuple[Subject, ...]:
    """Each by the shortest end of its path that no other file shares; a file that comes again is numbered.

    Raises RuntimeFileError for a file that is absent, or of a kind that cannot be run.
    """
    for file in files:
        if file.suffix not in SUFFIXES:
            raise RuntimeFileError(f"{file}: only {', '.join(SUFFIXES)} can be compared")
        if not file.is_file():
            raise RuntimeFileError(f"{file} cannot be read: no such file")
    distinct = {file.resolve() for file in files}
    subjects = []
    for index, file in enumerate(files):
        earlier = [other.resolve() for other in files[:index]].count(file.resolve())
        name = _shortest(file.resolve(), distinct - {file.resolve()})
        subjects.append(Subject(f"{name} #{earlier + 1}" if earlier else name, file))
    return tuple(subjects)


def _shortest(path: Path, others: set[Path]) -> str:
    for count in range(1, len(path.parts) + 1):
        end = path.parts[-count:]
        if all(other.parts[-count:] != end for other in others):
            return str(Path(*end))
    return str(path)
