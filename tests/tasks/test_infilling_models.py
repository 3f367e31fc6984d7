"""GLM, which fills blanks, in the form that FlagAI's users have it: called by keyword, saved, and run from an exported file."""

import io
from pathlib import Path

import pytest
import sentencepiece
import torch

from flatlm import AutoLoader
from flatlm.errors import ConfigError
from flatlm.generative.infilling.fill import Context, SpecialTokens
from flatlm.tasks.base_model import BaseModel
from flatlm.tasks.models import GLMForSeq2Seq, GLMModel
from tests.examples.glm_blank_reference import BASE, GLMReference, Span, position_rows, save_reference
from tests.examples.references import randomise

CORPUS = ["北京是中国的首都。", "今天天气很好,我们去公园玩。", "Once upon a time there was a little girl."] * 20


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> tuple[GLMReference, Path]:
    """A reference, and its folder GLM-large-ch."""
    directory, stream = tmp_path_factory.mktemp("state_dict") / "GLM-large-ch", io.BytesIO()
    reference = GLMReference(BASE).eval()
    randomise(reference, seed=4, spread=0.2)
    save_reference(reference, directory)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=stream, vocab_size=200, hard_vocab_limit=False, character_coverage=1.0, minloglevel=2
    )
    (directory / "cog-pretrain.model").write_bytes(stream.getvalue())
    return reference, directory


@torch.inference_mode()
def test_forward_is_the_reference(glm: tuple[GLMReference, Path]) -> None:
    reference, directory = glm
    model = GLMModel.from_pretrain(download_path=str(directory.parent), model_name="GLM-large-ch")
    tokens = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    rows = torch.stack([position_rows(7, [Span(2, 3), Span(5, 2)]), position_rows(9, [Span(4, 3)])])
    expected = torch.cat([reference(tokens[:1], rows[:1], 7), reference(tokens[1:], rows[1:], 9)])
    got = model(input_ids=tokens, position_ids=rows, attention_mask=torch.tensor([7, 9]), mems=None, return_memory=False)
    assert float((got["logits"] - expected).abs().max()) <= 1e-4
    assert len(got["hidden_states"]) == 4
    assert torch.equal(model(input_ids=tokens, position_ids=rows)["logits"], got["logits"])  # contexts end where blanks begin
    whole = reference(tokens, position_rows(12, [])[None].expand(2, -1, -1), 12)
    assert float((model(input_ids=tokens)["logits"] - whole).abs().max()) <= 1e-4
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), tokens.flatten())
    assert float(model(input_ids=tokens, position_ids=rows, labels=tokens)["loss"]) == pytest.approx(float(loss), abs=1e-5)


def test_round_trip_and_init(glm: tuple[GLMReference, Path], tmp_path: Path) -> None:
    model = GLMForSeq2Seq.from_pretrained(glm[1])
    model.save_pretrained(tmp_path)
    again = BaseModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    made = GLMModel.init_from_json(config_file=str(glm[1] / "config.json"), checkpoint_activations=True)
    assert made(input_ids=[[1, 2]])["logits"].shape == (1, 2, 128)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"position_ids": [[[0, 1]]]}, r"two rows for each text are \[1, 2, 2\]"),
        ({"position_ids": [[[0, 65], [0, 0]]]}, "position 65: the model knows 0 to 64"),
        ({"attention_mask": [1, 1]}, "it has 2 numbers"),
        ({"attention_mask": [99]}, "the texts are 2 long"),
    ],
)
def test_wrong_inputs(glm: tuple[GLMReference, Path], more: dict[str, object], message: str) -> None:
    model = GLMModel.from_pretrained(glm[1])
    with pytest.raises(ConfigError, match=message):
        model(input_ids=[[1, 2]], **more)


def test_title_generation_fills_a_blank_at_the_end(glm: tuple[GLMReference, Path]) -> None:
    reference, directory = glm
    loader = AutoLoader("title-generation", model_name="GLM-large-ch", model_dir=directory.parent)
    file = directory.parent / "glm.tflite"
    loader.export(file, recipe="none", prefill_lengths=(24,), kv_cache_len=48)
    tokenizer = loader.get_tokenizer()
    with loader.runner(file, threads=1) as runner:
        titled = runner.predict("今天天气很好", max_new_tokens=6)
        filled = runner.predict("北京是[MASK]的首都。", prompt="{text}[gMASK]", max_new_tokens=4)
    special = SpecialTokens.of(tokenizer)
    for found, text, blanks, most in ((titled, "今天天气很好", 1, 6), (filled, "北京是[MASK]的首都。[gMASK]", 2, 4)):
        context = Context.of(tokenizer, text)
        assert len(context.masks) == blanks
        expected = reference.fill(context.token_ids, context.masks, sop=special.start_of_piece, eop=special.end_of_piece, most=most)
        assert list(found.token_ids) == [token for answer in expected for token in answer]
        assert found.text == "\n".join(tokenizer.decode(answer) for answer in expected)
        assert found.filled is not None
    with pytest.raises(ConfigError, match="of the kind infilling; it can do lm, seq2seq, title-generation, poetry"):
        AutoLoader("masklm", "GLM-large-ch", directory.parent)
