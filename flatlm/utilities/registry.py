"""The families of models: a lazy table of records. A family's module is imported when a checkpoint asks for it."""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flatlm.errors import ConfigError
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.reading import AS_IT_SAYS, Reading

if TYPE_CHECKING:
    from flatlm.utilities.tensor_names import TensorNames


@dataclass(frozen=True)
class FamilyRecord:
    """One line of the table: the family's name, its module, the architectures in config.json that mean it, and models that are of it.

    `keys`: those that mean it, all of them together, in a config.json that names no architecture (FlagAI's); so may its `model_type`.
    """

    name: str
    module: str
    architectures: tuple[str, ...]
    reference: str
    models: str
    keys: tuple[str, ...] = ()

    def means(self, hf_config: ConfigReader) -> bool:
        """Is this configuration of the family, by its architecture or, where it names none, its keys or its `model_type`?"""
        if hf_config.architecture:
            return hf_config.architecture in self.architectures
        by_type = _MODEL_TYPES.get(hf_config.model_type) == self.name
        return by_type or (bool(self.keys) and all(map(hf_config.has, self.keys)))


_MODEL_TYPES = {
    **{name: name for name in ("albert", "bart", "bert", "distilbert", "electra", "gpt2", "mbart", "mt5", "roberta", "t5")},
    "xlm-roberta": "roberta",
}
"""Families by their `model_type`, which older checkpoints name alone; decoders that never were published so are not here."""


FAMILIES = (
    FamilyRecord(
        "llama",
        "flatlm.examples.llama",
        ("LlamaForCausalLM", "LLaMAForCausalLM"),
        "transformers.LlamaForCausalLM",
        "Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM, SmolLM2, Falcon3, AMD-Llama, DeepSeek-R1 distilled into Llama",
    ),
    FamilyRecord(
        "mistral", "flatlm.examples.mistral", ("MistralForCausalLM",), "transformers.MistralForCausalLM", "Mistral 7B, Nemo, Small"
    ),
    FamilyRecord(
        "qwen2",
        "flatlm.examples.qwen2",
        ("Qwen2ForCausalLM",),
        "transformers.Qwen2ForCausalLM",
        "Qwen2, Qwen2.5, Hammer, DeepSeek-R1 distilled into Qwen",
    ),
    FamilyRecord(
        "qwen3",
        "flatlm.examples.qwen3",
        ("Qwen3ForCausalLM",),
        "transformers.Qwen3ForCausalLM",
        "Qwen3",
    ),
    FamilyRecord(
        "smollm3",
        "flatlm.examples.smollm3",
        ("SmolLM3ForCausalLM",),
        "transformers.SmolLM3ForCausalLM",
        "SmolLM3",
    ),
    FamilyRecord(
        "mixtral",
        "flatlm.examples.mixtral",
        ("MixtralForCausalLM",),
        "transformers.MixtralForCausalLM",
        "Mixtral 8x7B, 8x22B",
    ),
    FamilyRecord(
        "qwen3_moe", "flatlm.examples.qwen3_moe", ("Qwen3MoeForCausalLM",), "transformers.Qwen3MoeForCausalLM", "Qwen3-30B-A3B, 235B-A22B"
    ),
    FamilyRecord(
        "olmoe",
        "flatlm.examples.olmoe",
        ("OlmoeForCausalLM",),
        "transformers.OlmoeForCausalLM",
        "OLMoE 1B-7B",
    ),
    FamilyRecord(
        "granite_moe",
        "flatlm.examples.granite_moe",
        ("GraniteMoeForCausalLM",),
        "transformers.GraniteMoeForCausalLM",
        "Granite 3.0 and 3.1 A400M, A800M",
    ),
    FamilyRecord(
        "gpt2",
        "flatlm.examples.gpt2",
        ("GPT2LMHeadModel",),
        "transformers.GPT2LMHeadModel",
        "GPT-2, DistilGPT2, DialoGPT, Cerebras-GPT, CPM",
        ("n_embd", "n_head", "n_layer"),
    ),
    FamilyRecord("gemma", "flatlm.examples.gemma", ("GemmaForCausalLM",), "transformers.GemmaForCausalLM", "Gemma 2B, 7B, 1.1, CodeGemma"),
    FamilyRecord("gemma2", "flatlm.examples.gemma2", ("Gemma2ForCausalLM",), "transformers.Gemma2ForCausalLM", "Gemma 2 2B, 9B, 27B"),
    FamilyRecord(
        "gemma3",
        "flatlm.examples.gemma3",
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        "transformers.Gemma3ForCausalLM",
        "Gemma 3 270M, 1B, 4B, 12B, 27B (text)",
    ),
    FamilyRecord(
        "gpt_neox",
        "flatlm.examples.gpt_neox",
        ("GPTNeoXForCausalLM",),
        "transformers.GPTNeoXForCausalLM",
        "GPT-NeoX-20B, Pythia, RedPajama-INCITE, Dolly v2",
    ),
    FamilyRecord("opt", "flatlm.examples.opt", ("OPTForCausalLM",), "transformers.OPTForCausalLM", "OPT (not 350M), Galactica"),
    FamilyRecord("phi", "flatlm.examples.phi", ("PhiForCausalLM",), "transformers.PhiForCausalLM", "Phi-1, Phi-1.5, Phi-2"),
    FamilyRecord("phi3", "flatlm.examples.phi3", ("Phi3ForCausalLM",), "transformers.Phi3ForCausalLM", "Phi-3, Phi-3.5, Phi-4, Phi-4-mini"),
    FamilyRecord("glm", "flatlm.examples.glm", ("GlmForCausalLM",), "transformers.GlmForCausalLM", "GLM-4-9B, GLM-Edge"),
    FamilyRecord(
        "glm_blank_infilling",
        "flatlm.examples.glm_blank_infilling",
        ("GLMModel", "GLMForConditionalGeneration", "GLMForMultipleChoice", "GLMForSeq2Seq"),
        "FlagAI's glm_model.py",
        "GLM base, large, 2B, 10B, English and Chinese (2021, 2022): fills blanks",
        ("block_position_encoding", "max_sequence_length"),
    ),
    FamilyRecord("glm4", "flatlm.examples.glm4", ("Glm4ForCausalLM",), "transformers.Glm4ForCausalLM", "GLM-4-0414, GLM-Z1"),
    FamilyRecord(
        "ernie4_5",
        "flatlm.examples.ernie4_5",
        ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
        "transformers.Ernie4_5ForCausalLM",
        "ERNIE 4.5 0.3B",
    ),
    FamilyRecord("granite", "flatlm.examples.granite", ("GraniteForCausalLM",), "transformers.GraniteForCausalLM", "Granite 3.0 to 3.3"),
    FamilyRecord(
        "falcon",
        "flatlm.examples.falcon",
        ("FalconForCausalLM", "RWForCausalLM"),
        "transformers.FalconForCausalLM",
        "Falcon-RW, Falcon 7B, 40B, 180B, Falcon 2",
    ),
    FamilyRecord(
        "stablelm",
        "flatlm.examples.stablelm",
        ("StableLmForCausalLM", "StableLMEpochForCausalLM"),
        "transformers.StableLmForCausalLM",
        "StableLM 3B, StableLM 2 1.6B, 12B, Zephyr 3B, Stable Code",
    ),
    FamilyRecord("olmo", "flatlm.examples.olmo", ("OlmoForCausalLM",), "transformers.OlmoForCausalLM", "OLMo 1B, 7B"),
    FamilyRecord("olmo2", "flatlm.examples.olmo2", ("Olmo2ForCausalLM",), "transformers.Olmo2ForCausalLM", "OLMo 2 1B, 7B, 13B, 32B"),
    FamilyRecord("olmo3", "flatlm.examples.olmo3", ("Olmo3ForCausalLM",), "transformers.Olmo3ForCausalLM", "OLMo 3 7B, 32B"),
    FamilyRecord(
        "t5",
        "flatlm.examples.t5",
        ("T5ForConditionalGeneration", "T5WithLMHeadModel"),
        "transformers.T5ForConditionalGeneration",
        "T5, T5 v1.1, Flan-T5, ByT5, CodeT5+ 220M and 770M",
    ),
    FamilyRecord(
        "mt5",
        "flatlm.examples.mt5",
        ("MT5ForConditionalGeneration",),
        "transformers.MT5ForConditionalGeneration",
        "mT5, mT0",
    ),
    FamilyRecord(
        "bart",
        "flatlm.examples.bart",
        ("BartForConditionalGeneration", "BartModel"),
        "transformers.BartForConditionalGeneration",
        "BART base, large, CNN, XSum",
    ),
    FamilyRecord(
        "mbart",
        "flatlm.examples.mbart",
        ("MBartForConditionalGeneration",),
        "transformers.MBartForConditionalGeneration",
        "mBART-25, mBART-50",
    ),
    FamilyRecord(
        "openelm", "flatlm.examples.openelm", ("OpenELMForCausalLM",), "apple/OpenELM's modeling_openelm.py", "OpenELM 270M to 3B"
    ),
    FamilyRecord(
        "bert",
        "flatlm.examples.bert",
        (
            "BertModel",
            "BertForPreTraining",
            "BertForMaskedLM",
            "BertForSequenceClassification",
            "BertForTokenClassification",
            "BertForQuestionAnswering",
        ),
        "transformers.BertModel",
        "BERT, multilingual and Chinese BERT, MiniLM, BGE, E5, GTE, SciBERT, FinBERT",
    ),
    FamilyRecord(
        "roberta",
        "flatlm.examples.roberta",
        (
            "RobertaModel",
            "RobertaForMaskedLM",
            "RobertaForSequenceClassification",
            "RobertaForTokenClassification",
            "RobertaForQuestionAnswering",
            "XLMRobertaModel",
            "XLMRobertaForMaskedLM",
            "XLMRobertaForSequenceClassification",
            "XLMRobertaForTokenClassification",
            "XLMRobertaForQuestionAnswering",
        ),
        "transformers.RobertaModel, transformers.XLMRobertaModel",
        "RoBERTa, XLM-RoBERTa, DistilRoBERTa, BGE-M3, multilingual E5",
    ),
    FamilyRecord(
        "albert",
        "flatlm.examples.albert",
        (
            "AlbertModel",
            "AlbertForPreTraining",
            "AlbertForMaskedLM",
            "AlbertForSequenceClassification",
            "AlbertForTokenClassification",
            "AlbertForQuestionAnswering",
        ),
        "transformers.AlbertModel",
        "ALBERT v1 and v2, base to xxlarge",
    ),
    FamilyRecord(
        "electra",
        "flatlm.examples.electra",
        (
            "ElectraModel",
            "ElectraForPreTraining",
            "ElectraForMaskedLM",
            "ElectraForSequenceClassification",
            "ElectraForTokenClassification",
            "ElectraForQuestionAnswering",
        ),
        "transformers.ElectraModel",
        "ELECTRA generators and discriminators, small to large",
    ),
    FamilyRecord(
        "distilbert",
        "flatlm.examples.distilbert",
        (
            "DistilBertModel",
            "DistilBertForMaskedLM",
            "DistilBertForSequenceClassification",
            "DistilBertForTokenClassification",
            "DistilBertForQuestionAnswering",
        ),
        "transformers.DistilBertModel",
        "DistilBERT, multilingual DistilBERT, the sentiment model fine-tuned on SST-2",
    ),
)

CUSTOM_FILES = "flatlm.authoring.custom_file"
"""What reads a model from a file that the user has named: it lies above, and is imported when there is such a file."""

_NO_GENERATOR = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""How the architectures end of models that do not generate text; GPT2LMHeadModel and its like do."""


class ConfigBuilder:
    """Builds a model's configuration from a checkpoint's config.json. Subclasses register themselves; the first whose `condition` holds
    builds: those from outside the package in their order, then the families.

    `tensor_names`: where the checkpoint has the weights of FlatLM's blocks. A builder from outside without them goes with a class in
    the module map (`authoring/module_map.py`), and gives an `authoring.config.ModelConfig`.
    """

    family: ClassVar[str]
    tensor_names: ClassVar["TensorNames"]
    _builders: ClassVar[list[type["ConfigBuilder"]]] = []

    def __init_subclass__(cls, *, registered: bool = True) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "family"):
            cls.family = cls.__name__
        if registered:
            ConfigBuilder._builders.append(cls)

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        """Is this configuration of the family?"""
        if cls.from_outside():
            raise ConfigError(f"{cls.__module__}.{cls.__name__} has no condition: define condition(cls, hf_config) as a classmethod")
        return family_record(cls.family).means(hf_config)

    @classmethod
    def from_outside(cls) -> bool:
        """Is it none of FlatLM's own?"""
        return not cls.__module__.startswith("flatlm.")

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> Any:
        """The model's configuration, of a type that `kinds/table.py` knows; every key that matters is read from `hf_config`.

        Raises ConfigError.
        """
        raise TypeError(f"{cls.__name__} has no build method")


def family_record(name: str) -> FamilyRecord:
    """The record of a family. Raises ConfigError, with the nearest name, for an unknown one."""
    for record in FAMILIES:
        if record.name == name:
            return record
    names = [record.name for record in FAMILIES]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
    raise ConfigError(f"there is no model family {name!r}: {hint}")


OUTSIDE = "flatlm.authoring.outside"
"""Where models from outside the package are looked for: `find(hf_config, module_map)` gives a builder, or None."""


def find_builder(hf_config: ConfigReader, *, family: str | None = None, module_map: Path | None = None) -> type[ConfigBuilder]:
    """The builder for a configuration: the named family's, else one from outside, else the first whose condition holds.

    `module_map`: a file that the user has named, which is run. Raises ConfigError.
    """
    if family is None:
        outside: type[ConfigBuilder] | None = importlib.import_module(OUTSIDE).find(hf_config, module_map)
        if outside is not None:
            return outside
    for record in FAMILIES:
        if record.name == family or (family is None and record.means(hf_config)):
            importlib.import_module(record.module)
    if family is not None:
        family_record(family)
    possible = [builder for builder in ConfigBuilder._builders if family in (None, builder.family) and not builder.from_outside()]
    for builder in possible:
        if builder.condition(hf_config):
            return builder
    if family is not None:
        return possible[0]
    raise _not_supported(hf_config)


def _not_supported(hf_config: ConfigReader) -> ConfigError:
    """Why no builder takes a configuration."""
    architecture = hf_config.architecture
    known = sorted(name for record in FAMILIES for name in record.architectures)
    problem = f"{hf_config.source}: architecture {architecture or hf_config.model_type or 'unnamed'!r}"
    if architecture in known:
        return ConfigError(f"{problem} is supported, but not in the form that the other keys describe")
    headless = architecture.endswith(_NO_GENERATOR) and "LMHead" not in architecture
    if headless or hf_config.values.get("is_encoder_decoder") is True:
        encoders = [record.name for record in FAMILIES if any(name.endswith("ForMaskedLM") for name in record.architectures)]
        return ConfigError(
            f"{problem} is not supported: of encoders the families {', '.join(encoders)} are, of other models those for text generation "
            "that flatlm models lists. Where it is built as one of them, name that one: --model FAMILY"
        )
    if not architecture and hf_config.model_type in {record.name for record in FAMILIES}:
        return ConfigError(f"{problem} names no architecture: add --model {hf_config.model_type} to read it as one of that family")
    close = difflib.get_close_matches(architecture, known, 1, 0.8)
    hint = f"did you mean {close[0]}?" if close else f"supported are {', '.join(known)} (flatlm models lists them)"
    return ConfigError(f"{problem} is not supported; {hint}")


def build_config(directory: Path, reading: Reading = AS_IT_SAYS) -> tuple[Any, type[ConfigBuilder]]:
    """Read a checkpoint's config.json into the model's configuration, and say which builder did. Raises ConfigError."""
    return config_from(ConfigReader.from_directory(directory), directory, reading)


def config_from(reader: ConfigReader, directory: Path, reading: Reading = AS_IT_SAYS) -> tuple[Any, type[ConfigBuilder]]:
    """The same, of values that were read already. Raises ConfigError."""
    reader.task = reading.task
    if reading.custom is not None:
        _require_alone(reading)
        builder = importlib.import_module(CUSTOM_FILES).custom_builder(reading.custom)
    else:
        builder = find_builder(reader, family=reading.family, module_map=reading.module_map)
    config = builder.build(reader, directory)
    if reading.task is not None and not reader.task_heeded:
        raise ConfigError(f"--task {reading.task}: models of the family {builder.family} have no choice of heads: leave it out")
    reader.skip("quantization_config")  # read, or refused, where the checkpoint is opened
    reader.finish(reading.ignored_config_keys)
    return config, builder


def _require_alone(reading: Reading) -> None:
    """ConfigError where beside a custom file there is something else that says what the model is."""
    others = {f"--model {reading.family}": reading.family, f"--module-map {reading.module_map}": reading.module_map}
    for option, given in others.items():
        if given is not None:
            raise ConfigError(f"--custom {reading.custom} says what the model is, and so does {option}: leave one of them out")
