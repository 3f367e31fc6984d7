"""/v1/embeddings and /v1/rerank."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from flatlm.serving.schemas.chat import Ignored
from flatlm.serving.schemas.common import Count, Strict
from flatlm.serving.schemas.shapes import OBJECT, TEXT, TEXT_OR_OBJECT

MOST = 2048
"""Texts of one request; OpenAI's."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
TRUNCATE = Field(None, description="Cut texts that are longer than the model reads. By default they are refused.")


def _form(value: Any) -> str:
    """Which alternative an input is, by its first entry."""
    if not isinstance(value, list):
        return "(text)"
    first = value[0] if value else ""
    return "(ids)" if isinstance(first, int) else "(lists)" if isinstance(first, list) else "(texts)"


class EmbeddingsRequest(Strict):
    model: str = Field(max_length=1000)
    input: Annotated[
        Annotated[str, Tag("(text)")]
        | Annotated[list[str], Field(min_length=1, max_length=MOST), Tag("(texts)")]
        | Annotated[TokenIds, Tag("(ids)")]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST), Tag("(lists)")],
        Discriminator(_form),
    ] = Field(description="A text, texts, or their token ids, which are read as they are: nothing is put around them.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: of float32, little-endian. By default float.")
    dimensions: Count | None = Field(None, description="Keep so many of a vector's numbers, brought back to the length 1.")
    truncate: bool | None = TRUNCATE
    user: str | None = Ignored


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Document(Strict):
    text: str


DocumentOrText = Annotated[Annotated[str, TEXT] | Annotated[Document, OBJECT], TEXT_OR_OBJECT]


class RerankRequest(Strict):
    model: str = Field(max_length=1000)
    query: str
    documents: Annotated[list[DocumentOrText], Field(min_length=1, max_length=MOST)]
    top_n: Count | None = Field(None, description="Give the best so many. By default all.")
    return_documents: bool | None = Field(None, description="Repeat the documents in the answer. By default they are not.")
    truncate: bool | None = TRUNCATE


class Ranked(BaseModel):
    index: int
    """Of the document, in the request."""
    relevance_score: float
    document: Document | None = None


class Ranking(BaseModel):
    """`results`: the best first. `method`: "sequence_pair", the probability that a classifier gives, or "cosine", of two vectors."""

    id: str
    model: str
    method: Literal["sequence_pair", "cosine"]
    results: list[Ranked]
    usage: EmbeddingUsage
