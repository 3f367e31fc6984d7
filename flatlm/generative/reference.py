"""What an exported file is compared with: the original checkpoint, run by transformers, or by the eager re-authored model."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from flatlm.authoring.config import AuthoredConfig
from flatlm.convert.quiet import quiet
from flatlm.errors import CheckpointError, ConfigError, FlatlmError
from flatlm.generative.pretrained import load_pretrained
from flatlm.layers.config import LongRopeScaling
from flatlm.layers.kv_cache import empty_caches
from flatlm.utilities.checkpoints.gguf_file import GgufCheckpoint
from flatlm.utilities.checkpoints.gguf_paths import find_gguf
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.checkpoints.quantized import is_quantized
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import find_builder
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import AS_IT_SAYS, Reading


class Reference(Protocol):
    """A model in float32 that reads a text piece by piece."""

    name: str

    def reset(self) -> None:
        """Forget the text so far."""
        ...

    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Read on: the logits [n, V] after each of the n ids."""
        ...


class EagerReference:
    """The re-authored model itself, its weights as the checkpoint has them."""

    name = "eager"

    def __init__(self, checkpoint: Path, *, length: int, lora: Path | None = None, reading: Reading = AS_IT_SAYS) -> None:
        self._model = build_model(checkpoint, kv_cache_max_len=length, lora=lora, reading=reading)
        self.reset()

    def reset(self) -> None:
        self._caches = empty_caches(self._model.config, self._model.geometry)
        self._position = 0

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        positions = torch.arange(self._position, self._position + len(ids), dtype=torch.int32)
        logits, self._caches = self._model(torch.tensor([list(ids)], dtype=torch.int32), positions, self._caches)
        self._position += len(ids)
        return logits[0].numpy()  # type: ignore[no-any-return]


class TransformersReference:
    """The class that the checkpoint was made for, from transformers, on the CPU."""

    name = "transformers"

    def __init__(self, checkpoint: Path, *, lora: Path | None = None) -> None:
        """Raises CheckpointError where transformers, or peft for an adapter, cannot load it whole. Code in the checkpoint is never run."""
        try:
            with quiet():
                from transformers import AutoModelForCausalLM

                if (file := find_gguf(checkpoint)) is not None:
                    model = _load_gguf(checkpoint, file)
                else:
                    model = load_pretrained(AutoModelForCausalLM, checkpoint)
                if lora is not None:
                    model = _with_adapter(model, checkpoint, lora)
        except FlatlmError:
            raise
        except Exception as error:  # whatever it meets in a broken checkpoint
            raise CheckpointError(f"{checkpoint}: transformers cannot load it ({error}); try --against eager") from error
        self._model = model.eval()
        self.reset()

    def reset(self) -> None:
        self._cache: Any = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        out = self._model(torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return out.logits[0].float().numpy()  # type: ignore[no-any-return]


def _load_gguf(checkpoint: Path, file: Path) -> Any:
    """The class and configuration that the metadata means (of which transformers itself overlooks some, such as Llama 3's scaling).

    The values are read by transformers where it reads that architecture rightly, else by FlatLM.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    values = dict(ConfigReader.from_directory(checkpoint).values)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    more = {"config": config, "dtype": torch.float32, "local_files_only": True}
    with GgufCheckpoint.open(file, named=checkpoint) as store:
        if store.transformers_reads and find_spec("accelerate"):
            return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False, **more)
        state = {name: store.read(name).float() for name in store.tensors}
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(None, state_dict=state, **more)


def _with_adapter(model: Any, checkpoint: Path, lora: Path) -> Any:
    """A model of transformers with an adapter in it, by peft."""
    from peft import PeftModel

    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    with open_checkpoint(checkpoint, lora=lora) as store:
        if isinstance(store, LoraStore) and (rows := store.vocabulary(f"{embedding}.weight")) is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = PeftModel.from_pretrained(model, str(lora), local_files_only=True)
    # A merge adds to a tied head what was trained for the embedding alone, or twice: there the adapter runs beside the weights.
    return adapted.get_base_model() if model.config.tie_word_embeddings else adapted.merge_and_unload()


def _known_to_transformers(checkpoint: Path, length: int) -> bool:
    """Has it a class for the checkpoint, and does that class compute what a file for a context of that length does?"""
    reader = ConfigReader.from_directory(checkpoint)
    try:
        config = find_builder(reader).build(reader, checkpoint)
        if isinstance(config, AuthoredConfig):
            return False  # an author's class is the model, whatever else has the architecture's name
        ropes = getattr(config, "ropes", ())
    except ConfigError:  # a checkpoint that the user has named the family of
        return True
    if any(isinstance(rope.scaling, LongRopeScaling) and length > rope.scaling.original_max_positions for rope in ropes):
        return False  # it would turn short texts by the short factors; see the README's limits
    with quiet():
        import transformers

        return hasattr(transformers, reader.architecture) or find_gguf(checkpoint) is not None


REFERENCES = ("transformers", "eager")


def require_its_code(manifest: Mapping[str, Any], file: Path, checkpoint: Path, reading: Reading) -> None:
    """ConfigError for a file of the user's own code, where that was not given and nobody else knows what the checkpoint is."""
    custom, module = manifest.get("custom"), manifest.get("module")
    if reading.names_code or (custom is None and module is None):
        return
    reader = ConfigReader.from_directory(checkpoint)
    try:
        find_builder(reader, family=reading.family)
    except ConfigError:
        pass
    else:
        return
    if find_spec("transformers") is not None:
        with quiet():
            import transformers
        if reader.architecture and hasattr(transformers, reader.architecture):
            return
    name, option = (custom.get("file"), "--custom") if isinstance(custom, dict) else (module, "--module-map")
    raise ConfigError(f"{file} was exported with {option} {name}, and {checkpoint} does not say what it is: give that file with {option}")


def reference_name(
    checkpoint: Path, *, length: int, against: str | None = None, lora: Path | None = None, reading: Reading = AS_IT_SAYS
) -> str:
    """`against`; by default transformers where it is installed (and, for an adapter, peft), else the eager model.

    The eager model also where the user's own code is the model, and where transformers has no class for the checkpoint, cannot read its
    form, or would turn positions otherwise. Raises ConfigError where what was asked for cannot be had.
    """
    missing = [name for name in ("transformers", *(["peft"] if lora else [])) if find_spec(name) is None]
    if against is None:
        eager = missing or reading.names_code or is_quantized(checkpoint) or not _known_to_transformers(checkpoint, length)
        return "eager" if eager else "transformers"
    if against not in REFERENCES:
        raise ConfigError(f"--against {against}: choose one of {', '.join(REFERENCES)}")
    if against == "transformers" and missing:
        raise ConfigError(f"--against transformers needs {' and '.join(missing)}: install what is missing, or choose --against eager")
    return against


def open_reference(
    checkpoint: Path, *, length: int, against: str | None = None, lora: Path | None = None, reading: Reading = AS_IT_SAYS
) -> Reference:
    """The reference that `reference_name` chooses, for contexts of `length` tokens."""
    if reference_name(checkpoint, length=length, against=against, lora=lora, reading=reading) == "eager":
        return EagerReference(checkpoint, length=length, lora=lora, reading=reading)
    return TransformersReference(checkpoint, lora=lora)
