"""`check_model`: what FlatLM makes of a checkpoint, before any work: its configuration, and where every weight comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm.errors import FlatlmError
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.kinds.table import kind_of
from flatlm.utilities.reading import Reading
from flatlm.utilities.weights.loader import LoadPlan, ModelLoader


@dataclass(frozen=True)
class ModelCheck:
    """What was found. `problem`: what stands in the way of an export, in one message; the rest is as far as it came.

    `config`: what config.json became; `family`: by whose doing. `weights`: for each parameter of the model its shape, and the checkpoint's
    tensors that it is made of. `ignored`: tensors that are left out on purpose.
    """

    checkpoint: Path
    problem: str | None = None
    family: str | None = None
    config: Any = None
    parameters: int = 0
    weights: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]] | None = None
    ignored: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.problem is None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.checkpoint} cannot be exported: {self.problem}"
        return f"{self.checkpoint} can be exported: {self.family}, {self.parameters} parameters in {len(self.weights or {})} weights"


def check_model(
    path: str | Path,
    *,
    custom_module_map: str | Path | None = None,
    custom: str | Path | None = None,
    family: str | None = None,
    ignored_config_keys: tuple[str, ...] = (),
) -> ModelCheck:
    """Does the configuration parse, what did it become, what is the plan of weights? Reads no weights, and raises nothing a user can cause.

    `custom_module_map`, `custom`: files of the user's own code, which are run. `family`, `ignored_config_keys`: as `--model` and
    `--ignore-config-key` of the command line.
    """
    directory = Path(path)
    files = [None if file is None else Path(file) for file in (custom, custom_module_map)]
    reading = Reading(family, ignored_config_keys, files[0], files[1])
    config = name = None
    try:
        config, builder = build_config(directory, reading)
        name = builder.family
        with open_checkpoint(directory) as checkpoint:
            loader = ModelLoader(checkpoint, builder.tensor_names)
            plan = kind_of(config).load_plan(config, loader.checkpoint, loader.names)
            return ModelCheck(directory, None, name, config, plan.parameters(), _sources(plan), plan.ignored)
    except FlatlmError as error:
        return ModelCheck(directory, str(error), name, config)


def _sources(plan: LoadPlan) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    return {name: (weight.shape, weight.sources) for name, weight in plan.weights.items()}
