"""What encoders are for: the tasks by name, which of them a checkpoint was trained for, and the head that a task has."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flatlm.errors import ConfigError
from flatlm.layers.config import Activation, NormConfig
from flatlm.layers.encoder_config import EmbeddingHead, Head, HiddenStates, MaskedLMHead, PoolerConfig, Pooling, SequenceHead, TokenHead
from flatlm.utilities.checkpoints.open import peek_tensors
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.json_file import read_json
from flatlm.utilities.weights.loader import resolve_prefix
from flatlm.utilities.weights.tensor_names import TensorNames

FEATURES = "features"
EMBEDDING = "embedding"
MASKED_LM = "masklm"
CLASSIFICATION = "classification"
TOKEN_CLASSIFICATION = "token-classification"
QUESTION_ANSWERING = "question-answering"
REPLACED_TOKENS = "replaced-tokens"

TASKS: Mapping[str, str] = {
    FEATURES: FEATURES,
    EMBEDDING: EMBEDDING,
    MASKED_LM: MASKED_LM,
    CLASSIFICATION: CLASSIFICATION,
    "semantic-matching": CLASSIFICATION,
    TOKEN_CLASSIFICATION: TOKEN_CLASSIFICATION,
    "sequence-labeling": TOKEN_CLASSIFICATION,
    "ner": TOKEN_CLASSIFICATION,
    QUESTION_ANSWERING: QUESTION_ANSWERING,
    REPLACED_TOKENS: REPLACED_TOKENS,
}
"""What `--task` may say, and which head it means."""

ARCHITECTURE_ENDINGS = {
    MASKED_LM: "ForMaskedLM",
    CLASSIFICATION: "ForSequenceClassification",
    TOKEN_CLASSIFICATION: "ForTokenClassification",
    QUESTION_ANSWERING: "ForQuestionAnswering",
}
"""How the architectures end of encoders that were trained for a task."""

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
MODULES_FILE = "modules.json"
_POOLINGS = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_cls_token": Pooling.CLS,
}


@dataclass(frozen=True)
class HeadStyle:
    """How a family's heads differ from others': the activation of a masked language model's and of a text classifier's dense layer.

    `norm`: a masked language model's. `pretraining`: what the architecture that ends in ForPreTraining is for. `discriminator`: the
    activation of the head that tells replaced tokens.
    """

    masked: Activation
    norm: NormConfig
    sequence: Activation = Activation.TANH
    pretraining: str = MASKED_LM
    discriminator: Activation = Activation.GELU


def read_head(hf_config: ConfigReader, model_path: Path, names: TensorNames, style: HeadStyle) -> tuple[str, Head]:
    """The task that a checkpoint is read for, and its head: as the user says, else as its files do. Raises ConfigError."""
    task = _task(hf_config, model_path, style)
    tied = hf_config.boolean("tie_word_embeddings", True)
    match task:
        case "masklm":
            return task, MaskedLMHead(style.masked, style.norm, tied)
        case "classification":
            return task, SequenceHead(_labels(hf_config), PoolerConfig(style.sequence))
        case "token-classification":
            return task, TokenHead(_labels(hf_config))
        case "question-answering":
            return task, TokenHead(2)
        case "replaced-tokens":
            return task, TokenHead(1, style.discriminator)
        case "embedding":
            return task, read_pooling(model_path)
    return task, HiddenStates(PoolerConfig() if _has_pooler(model_path, names) else None)


def problem_type(hf_config: ConfigReader) -> str | None:
    """What a classifier's logits are; None where config.json does not say. Raises ConfigError."""
    if hf_config.values.get("problem_type") is None:
        return None
    return str(hf_config.choice("problem_type", dict(zip(PROBLEM_TYPES, PROBLEM_TYPES, strict=True))))


def label_names(hf_config: ConfigReader) -> tuple[str, ...]:
    """The classes' names in their order, LABEL_0 and so on where none are given. Raises ConfigError for a table with gaps."""
    names = hf_config.values.get("id2label")
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(hf_config.positive_int("num_labels", 2)))
    if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))) or not names:
        raise hf_config.wrong("id2label", "must name the labels 0, 1, 2, ... without a gap")
    if not all(isinstance(name, str | int) for name in names.values()):
        raise hf_config.wrong("id2label", "must name each label by a text")
    return tuple(str(names[str(i)]) for i in range(len(names)))


def read_pooling(directory: Path) -> EmbeddingHead:
    """How a text's embedding is made: as sentence-transformers' `modules.json` says it, else the mean. Raises ConfigError."""
    path = directory / MODULES_FILE
    if not path.is_file():
        return EmbeddingHead()
    head = EmbeddingHead()
    for module in read_json(path, ConfigError, list):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1] if isinstance(module, dict) else ""
        if kind == "Pooling":
            head = EmbeddingHead(_pooling(directory / str(module.get("path", "")) / "config.json"))
        elif kind == "Normalize":
            head = EmbeddingHead(head.pooling, normalised=True)
        elif kind != "Transformer":
            raise ConfigError(f"{path}: a module of type {kind!r} is not supported; supported are Transformer, Pooling and Normalize")
    return head


def _pooling(path: Path) -> Pooling:
    values = read_json(path, ConfigError)
    modes = [mode for mode, on in values.items() if mode.startswith("pooling_mode_") and on is True]
    if isinstance(values.get("pooling_mode"), str):  # newer files name it
        modes = [f"pooling_mode_{values['pooling_mode']}_{'token' if values['pooling_mode'] == 'cls' else 'tokens'}"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ConfigError(f"{path}: pooling by {', '.join(modes) or 'nothing'} is not supported; by one of {', '.join(_POOLINGS)} is")
    return _POOLINGS[modes[0]]


def _task(hf_config: ConfigReader, model_path: Path, style: HeadStyle) -> str:
    if (asked := hf_config.heed_task()) is not None:
        if asked not in TASKS:
            raise ConfigError(f"--task {asked}: there are {', '.join(TASKS)}")
        own = _trained_for(hf_config, style)
        if own is not None and TASKS[asked] not in (own, FEATURES, EMBEDDING):
            raise ConfigError(
                f"{hf_config.source}: a {hf_config.architecture} has a head for {own}, not for {asked} as was asked (--task): ask for "
                f"{own}, {EMBEDDING} or {FEATURES}, or correct the architecture where its weights are for {asked}"
            )
        return TASKS[asked]
    if (model_path / MODULES_FILE).is_file():
        return EMBEDDING
    return _trained_for(hf_config, style) or FEATURES


def _trained_for(hf_config: ConfigReader, style: HeadStyle) -> str | None:
    """The task of the head that the architecture names, or None."""
    if hf_config.architecture.endswith("ForPreTraining"):
        return style.pretraining
    return next((task for task, ending in ARCHITECTURE_ENDINGS.items() if hf_config.architecture.endswith(ending)), None)


def _labels(hf_config: ConfigReader) -> int:
    return len(label_names(hf_config))


def _has_pooler(model_path: Path, names: TensorNames) -> bool:
    """No key of config.json says whether a model was saved with its pooler; a configuration by itself has one where its family has."""
    tensors = peek_tensors(model_path)
    if tensors is None:
        return names.pooler is not None
    return f"{resolve_prefix(names, tensors).pooler}.weight" in tensors
