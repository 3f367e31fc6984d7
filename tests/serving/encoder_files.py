"""Tiny random encoders, exported for what a server does with them."""

from dataclasses import dataclass
from pathlib import Path

from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.reading import Reading
from tests.tasks.made import make_bert, named


@dataclass(frozen=True)
class EncoderFiles:
    """`tokenizer`: the directory of that of all. `embedding` and `features` are of the same weights; `pairs` has the labels differ and
    match, `one` a single label. Texts of up to 24 tokens.
    """

    tokenizer: Path
    embedding: Path
    features: Path
    pairs: Path
    one: Path


def make_encoder_files(folder: Path) -> EncoderFiles:
    make_bert(folder / "plain", "Model")
    make_bert(folder / "pairs", "ForSequenceClassification", **named(("differ", "match")))
    make_bert(folder / "one", "ForSequenceClassification", num_labels=1)

    def made(checkpoint: str, task: str) -> Path:
        file = folder / f"{checkpoint}-{task}.tflite"
        export(ExportRequest(folder / checkpoint, file, get_recipe("none"), (24,), reading=Reading(task=task)))
        return file

    embedding, features = made("plain", "embedding"), made("plain", "features")
    return EncoderFiles(folder / "plain", embedding, features, made("pairs", "classification"), made("one", "classification"))
