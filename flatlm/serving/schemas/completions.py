"""/v1/completions."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from flatlm.serving.schemas.common import FinishReason, JsonObject, Usage, WritingRequest

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionRequest(WritingRequest):
    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="By default 16.")
    logprobs: int | None = Field(None, ge=0, description="Each token's logarithmic probability, and those of so many others.")
    echo: bool | None = Field(None, description="The prompt too, with logprobs its tokens' too.")
    best_of: int | None = Field(None, ge=1, description="No more than n: nothing is chosen among more.")
    suffix: str | None = Field(None, description="Refused: these models write on, they do not fill in.")


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


__all__ = ["Completion", "CompletionChoice", "CompletionLogprobs", "CompletionRequest", "JsonObject"]
