"""The verb serve with an encoder beside a decoder, in a process of its own."""

from pathlib import Path

import openai
import pytest

from flatlm.tasks.runner import open_task
from tests.commands.test_serve import serving
from tests.serving.encoder_files import EncoderFiles, make_encoder_files


@pytest.fixture(scope="module")
def encoder_files(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return make_encoder_files(tmp_path_factory.mktemp("encoders"))


def test_an_encoder_is_served_beside_a_decoder(encoder_files: EncoderFiles, bundle: Path) -> None:
    """The tokenizer is the encoder's; the bundle has its own."""
    files = (str(encoder_files.embedding), str(bundle))
    with serving(*files, "--tokenizer", str(encoder_files.tokenizer), "--threads", "1", "--chat-template", "plain") as (_, said):
        assert said["models"] == [encoder_files.embedding.stem, bundle.stem]
        client = openai.OpenAI(base_url=f"{said['address']}/v1", api_key="none", max_retries=0)
        vector = (
            client.embeddings.create(model=encoder_files.embedding.stem, input="the cat sat", encoding_format="float").data[0].embedding
        )
        answer = client.responses.create(model=bundle.stem, input="hello", max_output_tokens=5)
        assert answer.status in ("completed", "incomplete")
    with open_task(encoder_files.embedding, tokenizer=encoder_files.tokenizer, threads=1) as task:
        assert tuple(vector) == task.predict("the cat sat").vector
