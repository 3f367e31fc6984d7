"""Finds the target that a name means."""

import importlib
from collections.abc import Sequence

from flatlm.errors import TargetError
from flatlm.generative.targets.target import Target

_CLASSES = {
    "local": ("flatlm.generative.targets.local", "LocalTarget"),
    "ssh": ("flatlm.generative.targets.ssh", "SshTarget"),
    "adb": ("flatlm.generative.targets.adb", "AdbTarget"),
}
"""By what stands before the colon: a module, and the class in it, which is made from the whole name."""
FORMS = "local, ssh://[user@]host[:port], adb[:SERIAL]"


def open_target(name: str, *, ssh_options: Sequence[str] = (), remote_python: str = "python3") -> Target:
    """The target of a name such as `local`, `ssh://pi@raspberrypi` or `adb:SERIAL`; nothing is reached for yet. TargetError for others.

    `ssh_options`: settings of ssh_config such as `Port=2222`. `remote_python`: the interpreter to use behind ssh.
    """
    kind, colon, rest = name.partition(":")
    if kind not in _CLASSES or (kind == "local" and colon) or (kind == "adb" and colon and not rest):
        raise TargetError(f"there is no target {name!r}: give one of {FORMS}")
    module, class_name = _CLASSES[kind]
    make = getattr(importlib.import_module(module), class_name)
    target: Target = make(name, options=tuple(ssh_options), python=remote_python) if kind == "ssh" else make(name)
    return target
