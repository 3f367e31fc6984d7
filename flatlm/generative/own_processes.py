"""What the processes that this package starts have in common: where they find it, how they end with their parent, how that is told."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE_S = 5.0
"""For a process to tidy up in when it is to end."""


def environment_of_our_own() -> dict[str, str]:
    """As it is here, with this very package where Python looks first."""
    package = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}


def first_message() -> Any:
    """What the parent pickled to stdin. From then on this process and its children end when stdin does: as by Ctrl-C, and GRACE_S seconds
    later for sure. It must lead a session of its own. Who reads stdin afterwards finds nothing.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
    message = pickle.load(sys.stdin.buffer)
    watched = os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    return message


def _end_with(stream: int) -> None:
    while os.read(stream, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """At once: one that leads a session, and its children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()


def ending_of(code: int) -> str:
    """In words, of a process's exit status, or a shell's 128 and more for a signal."""
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"ended with code {code}"
    name = signal.Signals(number).name
    return f"was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
