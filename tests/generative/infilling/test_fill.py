"""Blanks filled by an exported file: the same tokens as the plain reference finds, with the model's own tokenizer."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from flatlm import cli
from flatlm.errors import ExportError, RuntimeFileError, TokenizerError
from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.infilling.fill import Context, FilledBlank, SpecialTokens, fill
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.runner import Runner
from flatlm.generative.tune import Budget, tune
from flatlm.generative.verify import verify
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.examples.glm_blank_reference import BASE, GLMReference, save_reference
from tests.examples.references import randomise

CORPUS = ["北京是中国的首都。", "今天天气很好,我们去公园玩。", "Once upon a time there was a little girl."] * 20
PROMPTS = ["北京是中国的[MASK]。", "今天[sMASK]我们[MASK]公园玩。", "Once upon a time [gMASK]", "[MASK]天气[MASK]好[MASK]"]


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> tuple[GLMReference, Path]:
    """A reference with GLM-large-ch's kind of tokenizer, and its file beside it."""
    directory, stream = tmp_path_factory.mktemp("glm"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=stream, vocab_size=200, hard_vocab_limit=False, character_coverage=1.0, minloglevel=2
    )
    (directory / "cog-pretrain.model").write_bytes(stream.getvalue())
    reference = GLMReference(BASE).eval()
    randomise(reference, seed=4, spread=0.2)
    save_reference(reference, directory)
    export(ExportRequest(directory, directory / "glm.tflite", get_recipe("none"), (8, 24), 48))
    return reference, directory


@pytest.fixture(scope="module")
def tokenizer(glm: tuple[GLMReference, Path]) -> Tokenizer:
    return Tokenizer.load(glm[1])


@pytest.fixture(scope="module")
def opened(glm: tuple[GLMReference, Path]) -> Iterator[InfillingRunner]:
    with InfillingRunner.open(glm[1] / "glm.tflite") as runner:
        yield runner


def test_the_vocabulary_fits_the_model(tokenizer: Tokenizer) -> None:
    assert 40 < tokenizer.vocab_size <= BASE["vocab_size"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_blanks_get_the_references_tokens(
    glm: tuple[GLMReference, Path], opened: InfillingRunner, tokenizer: Tokenizer, prompt: str
) -> None:
    context, special = Context.of(tokenizer, prompt), SpecialTokens.of(tokenizer)
    assert special.end is not None
    assert context.token_ids[0] == tokenizer.token_id("[CLS]")
    assert (context.token_ids[-1] == special.end) != prompt.endswith("MASK]")
    expected = glm[0].fill(context.token_ids, context.masks, sop=special.start_of_piece, eop=special.end_of_piece, most=6)
    result = fill(opened, tokenizer, context, GenerationConfig(max_new_tokens=6))
    assert [list(span.token_ids) for span in result.spans] == expected
    assert result.token_ids == tuple(token for answer in expected for token in answer)
    assert len(result.spans) == prompt.count("MASK]") and result.prompt_token_ids == context.token_ids
    assert len({token for answer in expected for token in answer}) > 1


def test_an_answer_ends_at_the_end_of_the_piece(
    glm: tuple[GLMReference, Path], opened: InfillingRunner, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever token that is: here, the first other one that the reference says. It is not read, so the next blank does not see it."""
    context, special = Context.of(tokenizer, "今天[MASK]很好[MASK]"), SpecialTokens.of(tokenizer)
    answer = glm[0].fill(context.token_ids, context.masks[:1], sop=special.start_of_piece, eop=-1, most=12)[0]
    length = next(i for i, token in enumerate(answer) if token != answer[0])
    chosen = SpecialTokens(special.begin, special.start_of_piece, answer[length], special.end, special.masks)
    monkeypatch.setattr(SpecialTokens, "of", classmethod(lambda cls, tokenizer: chosen))
    expected = glm[0].fill(context.token_ids, context.masks, sop=special.start_of_piece, eop=answer[length], most=12)
    result = fill(opened, tokenizer, context, GenerationConfig(max_new_tokens=12))
    assert [list(span.token_ids) for span in result.spans] == expected
    assert (expected[0], result.spans[0].finish_reason) == (answer[:length], "eos")


def test_the_text_is_the_prompt_with_its_blanks_filled(opened: InfillingRunner, tokenizer: Tokenizer) -> None:
    result = fill(opened, tokenizer, Context.of(tokenizer, "今天[MASK]很好[MASK]。"), GenerationConfig(max_new_tokens=3))
    first, second = result.spans
    assert isinstance(first, FilledBlank)
    assert (first.mask, first.position) == ("[MASK]", result.prompt_token_ids.index(first_mask(tokenizer)))
    assert result.text == f"今天{first.text}很好{second.text}。"
    spaced = fill(opened, tokenizer, Context.of(tokenizer, "A  [MASK] Girl"), GenerationConfig(max_new_tokens=3))
    assert spaced.text == f"A  {spaced.spans[0].text.strip()} Girl"


def first_mask(tokenizer: Tokenizer) -> int:
    found = tokenizer.token_id("[MASK]")
    assert found is not None
    return found


def test_a_prompt_without_a_mask_gets_one(opened: InfillingRunner, tokenizer: Tokenizer) -> None:
    context = Context.of(tokenizer, "北京是")
    assert context.added == "[gMASK]" and context.token_ids == Context.of(tokenizer, "北京是 [gMASK]").token_ids
    assert fill(opened, tokenizer, context, GenerationConfig(max_new_tokens=2)).added_mask == "[gMASK]"


def test_a_full_context_ends_the_answer(opened: InfillingRunner, tokenizer: Tokenizer) -> None:
    context = Context.of(tokenizer, "北京[MASK]首都[MASK]")
    special = SpecialTokens.of(tokenizer)
    result = fill(opened, tokenizer, context, GenerationConfig(max_new_tokens=None))
    assert result.spans[-1].finish_reason == "context" or special.end_of_piece not in result.token_ids
    assert len(result.token_ids) <= opened.cache_length - len(context.token_ids)
    with pytest.raises(RuntimeFileError, match="it is 0 or more"):
        fill(opened, tokenizer, context, GenerationConfig(max_new_tokens=-1))


def test_it_is_not_written_on(glm: tuple[GLMReference, Path], tokenizer: Tokenizer) -> None:
    with Runner.open(glm[1] / "glm.tflite") as runner, pytest.raises(RuntimeFileError, match="fills blanks in a text"):
        generate(runner, tokenizer, tokenizer.encode("北京"), GenerationConfig())


def test_a_tokenizer_without_its_tokens_is_refused(tmp_path: Path, glm: tuple[GLMReference, Path]) -> None:
    (tmp_path / "tokenizer.model").write_bytes((glm[1] / "cog-pretrain.model").read_bytes())
    with pytest.raises(TokenizerError, match=r"the tokenizer has no \[CLS\], <\|startofpiece\|>, <\|endofpiece\|>, \[MASK\]"):
        Context.of(Tokenizer.load(tmp_path), "北京[MASK]")


def test_verify_reads_prompts(glm: tuple[GLMReference, Path]) -> None:
    file = glm[1] / "glm.tflite"
    assert verify(file, glm[1], prompts=PROMPTS[:2], tokens=40).passed
    assert verify(file, glm[1], tokens=40).passed  # its own prompts
    with pytest.raises(RuntimeFileError, match="reads contexts of up to 24"):
        verify(file, glm[1], prompts=["北京是中国的首都。" * 10 + "[MASK]"])


def test_the_command(
    glm: tuple[GLMReference, Path], opened: InfillingRunner, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(glm[1] / "glm.tflite"), "--tokenizer", str(glm[1]), "--max-new-tokens", "4"]
    assert cli.main([*arguments, "--prompt", PROMPTS[1], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = fill(opened, tokenizer, Context.of(tokenizer, PROMPTS[1]), GenerationConfig(max_new_tokens=4))
    assert (said["text"], said["token_ids"]) == (expected.text, list(expected.token_ids))
    assert [span["token_ids"] for span in said["spans"]] == [list(span.token_ids) for span in expected.spans]
    assert cli.main([*arguments, "--prompt", "北京"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("北京") and "[gMASK] was put at its end" in out.err


def test_what_judges_text_that_is_written_on_is_refused_at_once(glm: tuple[GLMReference, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = glm[1] / "text.json"
    text.write_text(json.dumps(CORPUS))
    assert cli.main(["evaluate", str(glm[1] / "glm.tflite"), "--tokenizer", str(glm[1]), "--text", str(text)]) == 2
    said = capsys.readouterr().err
    assert "fills blanks in a text" in said
    assert "note:" not in said
    output = glm[1] / "tuned.tflite"
    with pytest.raises(ExportError, match="this model fills blanks: export it by a recipe"):
        tune(ExportRequest(glm[1], output, get_recipe("none"), (8, 24), 48, calibration=text), Budget(bits=8))
    assert not output.with_name("tuned.tune").exists()
