"""The demo model that ships: its text is reproducible, its held-out stories were never trained on, and it predicts them well."""

import importlib
import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import story_grammar, train_demo_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "flatlm" / "assets" / "demo_model"
HELD_OUT = ROOT / "flatlm" / "assets" / "demo_text" / "held_out.json"
PERPLEXITY_BOUND = 1.35  # ten stories measure 1.3377


@pytest.fixture(scope="module")
def grammar():
    return story_grammar


@pytest.fixture(scope="module")
def tool():
    return train_demo_model


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    return json.loads(HELD_OUT.read_text(encoding="utf-8"))


def test_grammar_follows_the_seed(grammar):
    first = list(grammar.stories(3, 40))
    assert first == list(grammar.stories(3, 40))
    assert first[:10] == list(grammar.stories(3, 10))
    assert not set(first) & set(grammar.stories(4, 40))


def test_stories_differ_and_are_clean_text(grammar):
    texts = list(grammar.stories(5, 1500))
    assert len(set(texts)) == len(texts)
    assert len({text[:200] for text in texts}) > 0.99 * len(texts)
    marks = re.compile(r"[^A-Za-z0-9 \n.,!?'\":-]|  | [.,!?]|[.,][.,]|[!?]\.|\b[Aa] [aeiou]")
    assert [text for text in texts if marks.search(text)] == []


def test_every_alternative_of_every_plot_can_be_filled(grammar):
    plots = grammar.read_plots()
    assert len(plots) == len({plot.name for plot in plots}) >= 15
    rng = random.Random(0)
    for plot in plots:
        for line in itertools.chain.from_iterable(beat for beat in plot.beats if beat):
            world = grammar.draw_world(rng)
            for slots, rows in plot.records:
                world |= dict(zip(slots, rng.choice(rows), strict=True))
            assert not re.search(r"[{}<>()|]", grammar._fill(line, world, rng))


def test_a_story_keeps_its_hero_and_pronouns(grammar):
    for seed, plot in itertools.product(range(20), grammar.read_plots()):
        story = grammar.make_story(random.Random(seed), [plot])
        hero = grammar.draw_world(random.Random(seed))["hero"]
        assert hero in story.split("\n")[0] and story.count(hero) >= 3


def test_held_out_stories_are_the_seeds_and_not_trained_on(tool, held_out):
    train_texts, expected = tool.split_stories(tool.Plan())
    assert held_out == expected
    assert len(held_out) == 150
    assert not set(held_out) & set(train_texts)


def test_importing_the_tool_does_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_demo_model.py", "--no-such-option"])
    before = {path: path.stat().st_mtime_ns for path in MODEL.parent.rglob("*")}
    importlib.reload(train_demo_model)
    assert capsys.readouterr() == ("", "")
    assert before == {path: path.stat().st_mtime_ns for path in MODEL.parent.rglob("*")}


def test_packed_rows_begin_with_bos_and_hold_whole_stories(tool, held_out):
    tokenizer = tool.train_tokenizer(held_out)
    rows = tool.pack(tokenizer, held_out, row=512)
    assert rows.shape[1] == 512 and (rows[:, 0] == tool.BOS).all()
    first = rows[0].tolist()
    end = first.index(tool.EOS)
    assert tokenizer.decode(first[:end]) == held_out[0]
    assert first[end + 1] == tool.BOS


def test_rate_warms_up_and_decays(tool):
    plan = tool.Plan()
    rates = [tool.rate_at(step, plan) for step in range(plan.steps)]
    assert max(rates) == pytest.approx(plan.peak_rate) and rates.index(max(rates)) in (plan.warmup - 1, plan.warmup)
    assert rates[0] < 0.1 * plan.peak_rate and rates[-1] < 0.02 * plan.peak_rate


def test_one_short_run_writes_a_checkpoint_that_loads(tool, tmp_path):
    texts, held_out = tool.split_stories(tool.Plan(stories=60, held_out=2))
    plan = tool.Plan(steps=2, batch=2, row=128)
    tokenizer = tool.train_tokenizer(texts)
    tool.save(tool.train(tool.pack(tokenizer, texts, plan.row), plan), tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in MODEL.iterdir()} - {"TRAINING.md"}
    assert tool.perplexity(tmp_path, held_out) > 100  # which is what an untrained model scores


def test_shipped_files_are_small_and_name_no_machine():
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    expected = {"TRAINING.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(sizes) == expected
    assert sum(sizes.values()) <= 4_000_000
    assert HELD_OUT.stat().st_size <= 400_000
    for path in (path for path in MODEL.iterdir() if path.suffix != ".safetensors"):
        assert not re.search(r"/(work|home|root|tmp|Users)/", path.read_text(encoding="utf-8"))


def test_shipped_model_is_a_llama_of_the_documented_shape(tool):
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto")
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    assert (config.hidden_size % 128, config.intermediate_size % 128, config.vocab_size % 128) == (0, 0, 0)
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 2_000_000
    assert json.loads((MODEL / "config.json").read_text(encoding="utf-8")) == tool.LLAMA


def test_shipped_tokenizer_adds_bos_and_round_trips(held_out):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 1024
    for text in [*held_out[:5], "Zürich, 42 °C — 日本 🙂\n\ttabs"]:
        ids = tokenizer(text).input_ids
        assert ids[0] == 1 and 0 not in ids and 2 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_shipped_model_predicts_held_out_stories(tool, held_out):
    assert tool.perplexity(MODEL, held_out[:10]) < PERPLEXITY_BOUND


def test_shipped_model_writes_a_story_and_ends_it(tool):
    story = tool.sample(MODEL, "Once upon a time", 0.0)
    words = set(re.findall(r"[A-Za-z]+", story))
    known = set(re.findall(r"[A-Za-z]+", " ".join(tool.story_grammar.stories(0, 3000))))
    assert story.startswith("Once upon a time") and words <= known
    assert 100 < len(story.split()) < 350 and story[-1] in '.!"'
