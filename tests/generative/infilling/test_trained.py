"""A tiny GLM that was trained here, in seconds, to fill blanks: the exported file fills them by what is on both sides."""

import io
import random
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F

from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.infilling.fill import Context, SpecialTokens, fill
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.prove import prover
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.examples.glm_blank_reference import BASE, GLMReference, Span, position_rows, save_reference

CAPITALS = {"北京": "中国", "巴黎": "法国", "东京": "日本", "伦敦": "英国", "开罗": "埃及"}
STEPS = 120


def sentence(city: str, country: str) -> str:
    return f"{city}是{country}的首都。"


def trained(directory: Path) -> GLMReference:
    """After 120 batches: each sentence with its city, its country, or both blank."""
    torch.manual_seed(0)
    stream, corpus = io.BytesIO(), [sentence(*pair) for pair in CAPITALS.items()] * 20
    options = {"vocab_size": 100, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=stream, **options)
    directory.mkdir(exist_ok=True)
    (directory / "cog-pretrain.model").write_bytes(stream.getvalue())
    tokenizer = Tokenizer.load(directory)
    special = SpecialTokens.of(tokenizer)
    model = GLMReference({**BASE, "num_layers": 2})
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    optimizer, chosen = torch.optim.Adam(model.parameters(), 3e-3), random.Random(0)
    texts = [(sentence(*asked), answers) for pair in CAPITALS.items() for asked, answers in blanks(pair)]
    for _ in range(STEPS):
        losses = []
        for text, answers in chosen.sample(texts, 5):
            context = Context.of(tokenizer, text)
            ids = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
            tokens = [*context.token_ids, *(token for answer in ids for token in (special.start_of_piece, *answer))]
            wanted = [token for answer in ids for token in (*answer, special.end_of_piece)]
            rows = position_rows(len(context.token_ids), [Span(m, len(a) + 1) for m, a in zip(context.masks, ids, strict=True)])
            logits = model(torch.tensor([tokens]), rows[None], len(context.token_ids))[0, len(context.token_ids) :]
            losses.append(F.cross_entropy(logits, torch.tensor(wanted)))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    save_reference(model.eval(), directory)
    return model


def blanks(pair: tuple[str, str]) -> list[tuple[tuple[str, str], list[str]]]:
    """What is left of a pair, and what is asked for."""
    city, country = pair
    return [(("[MASK]", country), [city]), ((city, "[MASK]"), [country]), (("[MASK]", "[MASK]"), [city, country])]


def test_a_trained_model_fills_its_blanks(tmp_path: Path) -> None:
    trained(tmp_path)
    request = ExportRequest(tmp_path, tmp_path / "glm.tflite", get_recipe("dynamic_int8"), (16,), 48)
    report = export(request, prove=prover(request))
    assert report.verification is not None and report.verification["passed"]
    tokenizer, config = Tokenizer.load(tmp_path), GenerationConfig(max_new_tokens=8)
    with InfillingRunner.open(tmp_path / "glm.tflite") as runner:
        for pair in CAPITALS.items():
            for asked, _ in blanks(pair)[:2]:
                assert fill(runner, tokenizer, Context.of(tokenizer, sentence(*asked)), config).text == sentence(*pair)
        both = fill(runner, tokenizer, Context.of(tokenizer, sentence("[MASK]", "[MASK]")), config)
        assert [span.finish_reason for span in both.spans] == ["eos", "eos"]
        assert CAPITALS[both.spans[0].text] == both.spans[1].text  # the second blank goes with the first
