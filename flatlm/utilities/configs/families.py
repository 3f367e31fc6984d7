"""The families of models: a table of records, as data. Their modules are imported elsewhere, when a checkpoint asks for one."""

import difflib
from dataclasses import dataclass

from flatlm.errors import ConfigError
from flatlm.utilities.configs.config_reader import ConfigReader


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


def family_record(name: str) -> FamilyRecord:
    """The record of a family. Raises ConfigError, with the nearest name, for an unknown one."""
    for record in FAMILIES:
        if record.name == name:
            return record
    names = [record.name for record in FAMILIES]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
    raise ConfigError(f"there is no model family {name!r}: {hint}")
