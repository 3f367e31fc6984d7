"""Train the demo model that ships with FlatLM: a small Llama that writes little stories, from scratch, on a CPU, in minutes.

    python -m tools.train_demo_model

writes `flatlm/assets/demo_model/` (a checkpoint as transformers saves them, bf16) and `flatlm/assets/demo_text/held_out.json` (stories
that were never trained on). Text, tokenizer, initial weights and batches all follow from the seed.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from tools import story_grammar

ASSETS = Path(__file__).resolve().parent.parent / "flatlm" / "assets"
SPECIAL = ("<unk>", "<s>", "</s>")
BOS, EOS = 1, 2
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1024,
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": SPECIAL[0],
    "bos_token": SPECIAL[1],
    "eos_token": SPECIAL[2],
    "model_max_length": LLAMA["max_position_embeddings"],
    "clean_up_tokenization_spaces": False,
}
PROMPTS = ("Once upon a time", "Once there was a little fox")


@dataclass(frozen=True)
class Plan:
    """What one run trains on, and for how long. The rows of a batch are `row` tokens long and begin with a story's first token."""

    seed: int = 0
    stories: int = 22400
    held_out: int = 150
    steps: int = 1400
    batch: int = 8
    row: int = 512
    peak_rate: float = 4e-3
    warmup: int = 60


def split_stories(plan: Plan) -> tuple[list[str], list[str]]:
    """The stories trained on and the held-out ones; no story is in both."""
    everything = list(story_grammar.stories(plan.seed, plan.held_out + plan.stories))
    return everything[plan.held_out :], everything[: plan.held_out]


def train_tokenizer(texts: list[str], vocab_size: int = LLAMA["vocab_size"]) -> Tokenizer:
    """A byte-level BPE that puts <s> before every text; it has no unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A", pair=f"{SPECIAL[1]} $A {SPECIAL[1]} $B", special_tokens=[(SPECIAL[1], BOS)]
    )
    return tokenizer


def pack(tokenizer: Tokenizer, texts: list[str], row: int) -> torch.Tensor:
    """Rows of tokens [rows, row]: whole stories, each from <s> to </s>, one after the other; the last story of a row is cut off."""
    rows, current = list[list[int]](), list[int]()
    for encoding in tokenizer.encode_batch(texts):
        current += [*encoding.ids, EOS]
        if len(current) >= row:
            rows.append(current[:row])
            current = []
    return torch.tensor(rows)


def rate_at(step: int, plan: Plan) -> float:
    """A linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < plan.warmup:
        return plan.peak_rate * (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(rows: torch.Tensor, plan: Plan, config: Mapping[str, Any] = LLAMA) -> LlamaForCausalLM:
    """The trained float32 model; `rows` [rows, row] are gone through in a shuffled order, again and again until the steps are done."""
    torch.manual_seed(plan.seed)
    model = LlamaForCausalLM(LlamaConfig(**config)).float().train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)
    order, started, total = list[int](), time.perf_counter(), 0.0
    shuffle = random.Random(plan.seed)
    for step in range(plan.steps):
        while len(order) < plan.batch:
            order += shuffle.sample(range(len(rows)), len(rows))
        batch, order = rows[order[: plan.batch]], order[plan.batch :]
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, plan)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5d}  loss {total / 50:.4f}  {time.perf_counter() - started:5.0f} s", flush=True)
            total = 0.0
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, directory: Path, config: Mapping[str, Any] = LLAMA) -> None:
    """The checkpoint's files, the weights in bf16; a tied head is not stored."""
    directory.mkdir(parents=True, exist_ok=True)
    tied = ("lm_head.weight",) if config["tie_word_embeddings"] else ()
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", TOKENIZER)
    write_json(directory / "config.json", dict(config))
    write_json(directory / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.8})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def perplexity(directory: Path, texts: list[str]) -> float:
    """Perplexity per token of `texts`, each from <s> to </s>, under the saved weights, computed in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    loss, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text).input_ids, EOS]])
        logits = model(input_ids=ids).logits[0, :-1]
        loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(loss / count)


def sample(directory: Path, prompt: str, temperature: float, seed: int = 0) -> str:
    """A story that begins with `prompt`, from the saved weights; temperature 0 is greedy."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    torch.manual_seed(seed)
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False, "temperature": None}
    ids = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=400, pad_token_id=EOS, **choice)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def report(directory: Path, plan: Plan, facts: dict[str, str]) -> str:
    """The text of TRAINING.md."""
    lines = ["# How this model was trained", "", "    python -m tools.train_demo_model", ""]
    lines += ["A Llama of little stories, from a seeded grammar (tools/story_grammar.py); made for demonstrations and tests.", ""]
    lines += ["It writes correct sentences and whole plots, but it often loses a story's names and places.", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items()), ""]
    lines += ["Greedy:", "", quoted(sample(directory, PROMPTS[0], 0.0)), "", f"Temperature 0.8, seed {plan.seed}:", ""]
    lines += [quoted(sample(directory, PROMPTS[1], 0.8, plan.seed)), ""]
    return "\n".join(lines)


def quoted(text: str) -> str:
    return "\n>\n".join(f"> {line}" for line in text.splitlines())


def run(plan: Plan, assets: Path) -> None:
    """Generate, train, save, evaluate and describe."""
    directory = assets / "demo_model"
    train_texts, held_out = split_stories(plan)
    size = sum(map(len, train_texts)) / 1e6
    tokenizer = train_tokenizer(train_texts)
    rows = pack(tokenizer, train_texts, plan.row)
    print(f"{len(train_texts)} stories, {size:.1f} MB, {rows.numel() / 1e6:.2f} million tokens in {len(rows)} rows", flush=True)
    started = time.perf_counter()
    model = train(rows, plan)
    minutes = (time.perf_counter() - started) / 60
    save(model, tokenizer, directory)
    (assets / "demo_text").mkdir(parents=True, exist_ok=True)
    write_json(assets / "demo_text" / "held_out.json", held_out)
    facts = {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "seed": str(plan.seed),
        "training text": f"{len(train_texts):,} stories, {size:.1f} MB",
        "steps": f"{plan.steps:,} of {plan.batch} rows of {plan.row} tokens",
        "time": f"{minutes:.1f} minutes by the clock, {torch.get_num_threads()} CPU threads",
        "held-out perplexity (bf16 weights)": f"{perplexity(directory, held_out):.4f} per token, {len(held_out)} stories",
    }
    for name, value in facts.items():
        print(f"{name}: {value}")
    text = report(directory, plan, facts)
    (directory / "TRAINING.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="the folder to write demo_model and demo_text into")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--stories", type=int, default=Plan.stories, help="how many stories to train on")
    parser.add_argument("--threads", type=int, help="CPU threads; fewer than the cores is faster on a busy machine")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    run(Plan(seed=arguments.seed, steps=arguments.steps, stories=arguments.stories), arguments.assets)


if __name__ == "__main__":
    main()
