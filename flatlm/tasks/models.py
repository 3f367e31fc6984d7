"""Model classes by the names that FlagAI's users know: `from flatlm.tasks.models import GPT2Model`. Each is made when it is asked for.

They differ from `BaseModel` in data alone: which families' checkpoints they read, and for which task the head is.
"""

import difflib

from flatlm.tasks.base_model import BaseModel
from flatlm.tasks.model_record import ModelRecord

BERTS = ("bert", "roberta", "albert", "electra", "distilbert")
MODELS = {
    record.name: record
    for record in (
        ModelRecord("GPT2Model", ("gpt2",)),
        ModelRecord("CPMModel", ("gpt2",)),
        ModelRecord("OPTModel", ("opt",)),
        ModelRecord("LlamaModel", ("llama",)),
        ModelRecord("BertModel", BERTS),
        ModelRecord("BertForMaskLM", BERTS, "masklm"),
        ModelRecord("BertForEmbedding", BERTS, "embedding"),
        ModelRecord("BertForClsClassifier", BERTS, "classification"),
        ModelRecord("BertForSequenceLabeling", BERTS, "sequence-labeling"),
        ModelRecord("BertForSequenceLabelingCRF", BERTS, "sequence-labeling", crf=True),
        ModelRecord("T5Model", ("t5", "mt5")),
        ModelRecord("BartModel", ("bart", "mbart")),
        ModelRecord("GLMModel", ("glm_blank_infilling",)),
        ModelRecord("GLMForSeq2Seq", ("glm_blank_infilling",)),
    )
}
"""By class name. A family that comes first reads a config.json that does not name its architecture."""

_made: dict[str, type[BaseModel]] = {}


def __getattr__(name: str) -> type[BaseModel]:
    """The class of that name, the same at every import."""
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(MODELS)}"
        raise AttributeError(f"module {__name__!r} has no model class {name!r}: {hint}")
    if name not in _made:
        record = MODELS[name]
        what = f"for the task {record.task}" if record.task else "with the head that its checkpoint has"
        doc = f"A model of {' or '.join(record.families)}, {what}. See `BaseModel`."
        _made[name] = type(name, (BaseModel,), {"record": record, "__doc__": doc, "__module__": __name__})
    return _made[name]


def __dir__() -> list[str]:
    return [*globals(), *MODELS]
