"""Train a small Llama on a text file, from scratch, on a CPU: a model to measure quantization on, larger than the demo model.

    python -m tools.train_text_model TEXT DIRECTORY --threads 1

The last tenth of the text is held out, and written to DIRECTORY/held_out.json as a list of documents. Everything follows from the seed.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from tools import train_demo_model as demo

VOCABULARY = 2048
SIZE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 6}
DRAFT = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
"""A much smaller one of the same tokens, to write ahead for it."""
DOCUMENT = 1500
"""Characters of a document, about: the text is cut at the next empty line."""


def documents(text: str, size: int = DOCUMENT) -> list[str]:
    """The text cut at empty lines, into documents of at least `size` characters; the last one may be shorter."""
    found, current = list[str](), ""
    for paragraph in text.split("\n\n"):
        current += ("\n\n" if current else "") + paragraph
        if len(current) >= size:
            found.append(current)
            current = ""
    return found + ([current] if current.strip() else [])


def pack(tokenizer: Tokenizer, texts: list[str], row: int) -> torch.Tensor:
    """Rows of tokens [rows, row] of all documents, one after the other, nothing left out but the last row's rest."""
    ids = [token for encoding in tokenizer.encode_batch(texts) for token in (*encoding.ids, demo.EOS)]
    return torch.tensor(ids[: len(ids) // row * row]).reshape(-1, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--draft", action="store_true", help="a model of a fortieth of the size")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    plan = demo.Plan(steps=arguments.steps, batch=8, row=256, peak_rate=2e-3, warmup=100)
    config = {**demo.LLAMA, **(DRAFT if arguments.draft else SIZE), "vocab_size": VOCABULARY, "tie_word_embeddings": False}
    texts = documents(arguments.text.read_text("utf-8"))
    kept = len(texts) * 9 // 10
    tokenizer = demo.train_tokenizer(texts[:kept], VOCABULARY)
    rows = pack(tokenizer, texts[:kept], plan.row)
    print(f"{kept} documents, {rows.numel():,} tokens", flush=True)
    model = demo.train(rows, plan, config)
    demo.save(model, tokenizer, arguments.directory, config)
    demo.write_json(arguments.directory / "held_out.json", texts[kept:])
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters; held-out perplexity "
        f"{demo.perplexity(arguments.directory, texts[kept:]):.2f} per token"
    )


if __name__ == "__main__":
    main()
