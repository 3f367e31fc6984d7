"""What an encoder's file says of itself: a signature for each length of text, the task, the labels. Read without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import ENCODER, MASK, FileContent, SignatureSpec, read_content

TOKENS, TOKEN_TYPES = "tokens", "token_types"


@dataclass(frozen=True)
class EncoderFile:
    """A file that keeps the conventions of `convert/encoder_graph.py`.

    `signatures` by their length T, from the shortest; all take and give the same. `task`: what it was exported for, by its name in
    `utilities/configs/encoder_tasks.py`. `labels`: the classes' names, in the order of the logits; empty where the task has none.
    `regression`: its one logit is a number of its own, and no class's; `multi_label`: a text may be of several classes. `pad_token_id`:
    what fills a text up. `token_types`: how many there are, 0 where tokens have none. `vocab_size` 0: the file does not say.
    """

    content: FileContent
    signatures: Mapping[int, SignatureSpec]
    task: str
    labels: tuple[str, ...] = ()
    regression: bool = False
    multi_label: bool = False
    pad_token_id: int = 0
    token_types: int = 0
    vocab_size: int = 0

    @property
    def path(self) -> Path:
        return self.content.path

    @property
    def longest(self) -> int:
        """The most tokens of a text."""
        return max(self.signatures)

    @property
    def has_token_types(self) -> bool:
        return TOKEN_TYPES in next(iter(self.signatures.values())).inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(next(iter(self.signatures.values())).outputs)


def read_encoder_file(path: Path) -> EncoderFile:
    """Reads and checks an encoder's `.tflite` file; RuntimeFileError for anything else."""
    content = read_content(path)
    specs = content.signatures
    if content.kind != ENCODER or not specs:
        names = ", ".join(spec.name for spec in specs) or "none"
        raise RuntimeFileError(f"{path} is not an encoder's file: its manifest says that it is a {content.kind}'s, with signatures {names}")
    for spec in specs:
        _check(path, spec)
        if (spec.inputs.keys(), spec.outputs.keys()) != (specs[0].inputs.keys(), specs[0].outputs.keys()):
            raise RuntimeFileError(f"{path}: its signatures {specs[0].name} and {spec.name} take or give different tensors")
    manifest = content.manifest
    labels = manifest.get("labels")
    names_of_classes = tuple(map(str, labels)) if isinstance(labels, list) else ()
    problem = manifest.get("problem_type")
    return EncoderFile(
        content,
        {spec.length: spec for spec in sorted(specs, key=lambda spec: spec.length)},
        str(manifest.get("task", "features")),
        names_of_classes,
        len(names_of_classes) == 1 if problem is None else problem == "regression",
        problem == "multi_label_classification",
        _whole(manifest, "pad_token_id"),
        _whole(manifest, "token_types") or int(TOKEN_TYPES in specs[0].inputs),
        _whole(manifest, "vocab_size"),
    )


def _check(path: Path, spec: SignatureSpec) -> None:
    where = f"{path}: signature {spec.name}"
    tokens = spec.inputs.get(TOKENS)
    if tokens is None or len(tokens.shape) != 2 or tokens.shape[0] != 1 or tokens.dtype != np.int32:
        raise RuntimeFileError(f"{where} must take tokens, int32 [1, T]; it takes {', '.join(spec.inputs)}")
    for name, tensor in spec.inputs.items():
        known = {MASK: np.float32, TOKEN_TYPES: np.int32, TOKENS: np.int32}.get(name)
        if known is None or tensor.shape != tokens.shape or tensor.dtype != known:
            raise RuntimeFileError(f"{where} takes {name} {tensor.dtype}{list(tensor.shape)}, which an encoder's does not")
    if MASK not in spec.inputs:
        raise RuntimeFileError(f"{where} takes no mask, so a text cannot be padded for it")
    for name, tensor in spec.outputs.items():
        if tensor.dtype != np.float32 or len(tensor.shape) not in (2, 3) or tensor.shape[0] != 1:
            raise RuntimeFileError(f"{where} gives {name} {tensor.dtype}{list(tensor.shape)}; outputs are float32 [1, D] or [1, T, D]")


def _whole(manifest: Mapping[str, object], key: str) -> int:
    value = manifest.get(key)
    return value if isinstance(value, int) and value >= 0 else 0
