"""Bundles in the real LiteRT-LM, with a model that answers with its own prompt: which tokens does it see, and when does it stop?"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flatlm.convert.bundle import BundleMetadata, TokenizerSource, write_bundle
from flatlm.convert.bundle_template import for_litert_lm
from tests.bundle_templates import SPECIAL_TOKENS, TEMPLATES
from tests.litert_lm_judge import END, SEPARATOR, echo_model, litert_lm_command, run_litert_lm

pytestmark = pytest.mark.slow  # converts a model, and may install LiteRT-LM

UNKNOWN, BOS, EOS = 0, 1, 2
PIECES = ["<unk>", "<s>", "</s>", "~", "<end>", *(chr(c) for c in range(32, 126)), "\n", "é"]
LAG = 120


@pytest.fixture(scope="session")
def litert_lm() -> Path:
    return litert_lm_command()


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("echo") / "echo.tflite"
    path.write_bytes(echo_model(lag=LAG))
    return path


@pytest.fixture(scope="session")
def hf() -> TokenizerSource:
    """A tokenizer of letters. Its post-processor adds BOS, as Llama's does: LiteRT-LM must not add it a second time."""
    special = [{"id": i, "content": PIECES[i], "special": True} for i in (UNKNOWN, BOS, EOS)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    text, bos = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [token | flags for token in special],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(PIECES)}, "merges": [], "unk_token": "<unk>"},
    }
    return TokenizerSource("hf", json.dumps(tokenizer).encode())


@pytest.fixture(scope="session")
def sentencepiece() -> TokenizerSource:
    """The same with SentencePiece."""
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(PIECES[5:-2])] * 9),
        model_writer=out,
        model_type="char",
        vocab_size=120,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=PIECES[SEPARATOR : END + 1],
        minloglevel=2,
    )
    return TokenizerSource("sentencepiece", out.getvalue())


def metadata(**changes: Any) -> BundleMetadata:
    return BundleMetadata(**({"max_num_tokens": 256, "stop_token_ids": (END,), "start_token_id": BOS, "manifest": {"a": 1}} | changes))


def answer(tokens: Sequence[str]) -> str:
    """What EchoModel answers to a prompt of these tokens."""
    return "~" * (LAG - len(tokens) + 1) + "".join(tokens)


PROMPTS = ["a", "Once upon a time", "x" * 7, "y" * 8, "z" * 9, "".join(map(chr, range(33, 126)))]
"""On both sides of the prefill lengths, 8 and 32, and of their sums."""


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_a_prompt_is_bos_and_its_text(litert_lm: Path, tmp_path: Path, echo: Path, hf: TokenizerSource, prompt: str) -> None:
    path = tmp_path / "echo.litertlm"
    write_bundle(path, model=echo, tokenizer=hf, metadata=metadata())
    assert run_litert_lm(litert_lm, path, prompt) == answer(["<s>", *prompt])
    assert run_litert_lm(litert_lm, path, prompt, "--no-template") == answer(["<s>", *prompt])


def test_without_a_start_token_there_is_no_bos(litert_lm: Path, tmp_path: Path, echo: Path, hf: TokenizerSource) -> None:
    path = tmp_path / "echo.litertlm"
    write_bundle(path, model=echo, tokenizer=hf, metadata=metadata(start_token_id=None))
    assert run_litert_lm(litert_lm, path, "Once upon") == answer([*"Once upon"])


def test_sentencepiece(litert_lm: Path, tmp_path: Path, echo: Path, sentencepiece: TokenizerSource) -> None:
    path = tmp_path / "echo.litertlm"
    write_bundle(path, model=echo, tokenizer=sentencepiece, metadata=metadata())
    # SentencePiece shows nothing for a control token; that it was there is seen by one separator less.
    assert run_litert_lm(litert_lm, path, "Once upon") == answer(["<s>", *"Once upon"]).replace("<s>", "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stop_token_ids": (PIECES.index("z"), PIECES.index("d"))}, "~" * 113 + "<s>abc"),
        ({"stop_token_ids": (), "stop_strings": ("ef",)}, "~" * 113 + "<s>abcd"),
        ({"stop_token_ids": (), "max_num_tokens": 124}, "~" * 113 + "<s>ab"),  # prompt and answer together
        ({"stop_token_ids": ()}, "~" * 113 + "<s>abcdefg" + "<end>" * 113 + "<s>abcdefg" + "<end>" * 6),  # to the cache's end
    ],
    ids=["stop token", "stop string", "max_num_tokens", "nothing"],
)
def test_what_ends_an_answer(
    litert_lm: Path, tmp_path: Path, echo: Path, hf: TokenizerSource, changes: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "echo.litertlm"
    write_bundle(path, model=echo, tokenizer=hf, metadata=metadata(**changes))
    assert run_litert_lm(litert_lm, path, "abcdefg") == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_ids_are_those_of_transformers(litert_lm: Path, tmp_path: Path, echo: Path, hf: TokenizerSource, name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_bytes(hf.data)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **SPECIAL_TOKENS)
    template = TEMPLATES[name]
    question = ' "Hi"\n there '
    ids = reference.apply_chat_template([{"role": "user", "content": question}], chat_template=template, add_generation_prompt=True)[
        "input_ids"
    ]
    path = tmp_path / "echo.litertlm"
    chat = metadata(start_token_id=None, chat_template=for_litert_lm(template, SPECIAL_TOKENS))
    write_bundle(path, model=echo, tokenizer=hf, metadata=chat)
    assert run_litert_lm(litert_lm, path, question) == answer([PIECES[i] for i in ids])


def test_stories260k_tells_transformers_story(litert_lm: Path, tmp_path: Path, shared: Path) -> None:
    """A trained model, its weights behind the flatbuffer's root: greedy text, from the tokenizer in both forms."""
    from flatlm.quantize.recipes import get_recipe
    from flatlm.utilities.exporter import ExportRequest, export

    checkpoint, model = shared / "checkpoints/stories260K", tmp_path / "model.tflite"
    golden = json.loads((shared / "acceptance/golden_stories260K.json").read_text())["text"]
    export(ExportRequest(checkpoint, model, recipe=get_recipe("none"), kv_cache_len=512, prefill_lengths=(16,)))
    for source in (TokenizerSource("hf", (checkpoint / "tokenizer.json").read_bytes()),
                   TokenizerSource("sentencepiece", (checkpoint / "tokenizer.model").read_bytes())):  # fmt: skip
        path = tmp_path / f"{source.kind}.litertlm"
        write_bundle(path, model=model, tokenizer=source, metadata=BundleMetadata(512, stop_token_ids=(2,), start_token_id=1))
        assert run_litert_lm(litert_lm, path, "Once upon a time").startswith(golden)
