"""How a checkpoint is to be read: what its directory does not say, or what the user knows better."""

from dataclasses import dataclass
from pathlib import Path

from flatlm.utilities.code_files import code_digest


@dataclass(frozen=True)
class Reading:
    """None: as config.json says.

    `family`: the model's, by the name that `flatlm models` lists. `ignored_config_keys`: keys that are known not to matter. `custom`: a
    Python file whose `__model__` is the model; `module_map`: one whose `MODULE_MAP` names classes for architectures. Both are code:
    they are run, and only because the user named them. `task`: what an encoder is for, by its task's name.
    """

    family: str | None = None
    ignored_config_keys: tuple[str, ...] = ()
    custom: Path | None = None
    module_map: Path | None = None
    task: str | None = None

    @property
    def names_code(self) -> bool:
        """Whether the user's own code says what the model is."""
        return self.custom is not None or self.module_map is not None

    def fingerprint(self) -> dict[str, str]:
        """What tells it from other readings: of code the bytes, with those of what it imports from beside it.

        Raises OSError where a file cannot be read.
        """
        code = {name: code_digest(path) for name, path in (("custom", self.custom), ("module_map", self.module_map)) if path is not None}
        return {"family": str(self.family), "ignored": ",".join(self.ignored_config_keys), "task": str(self.task), **code}


AS_IT_SAYS = Reading()
"""Nothing is known but what the checkpoint's directory says."""
