"""What requests and answers of several endpoints have in common. A field that is not declared is a 400 that names it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]


class Strict(BaseModel):
    """Nothing but what is declared, in its own type, and no number that is not one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(BaseModel):
    """Every refusal."""

    error: ErrorDetail


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Accepted, and without effect.")


Stop = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class WritingRequest(Strict):
    """How a text is written, whichever endpoint asks."""

    model: str = Field(max_length=1000)
    temperature: float | None = Field(None, ge=0, le=2, description="0: always the most probable token. By default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Count | None = Field(None, description="Not OpenAI's: draw from the k most probable tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not OpenAI's: leave out what is less probable than this part of the best.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Not OpenAI's: divides what is in the text already.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, description="By token id.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63)
    stop: Stop | list[Stop] | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(None, description="Not OpenAI's: write on where the model would end.")
    grammar: str | None = Field(None, min_length=1, description="Not OpenAI's: a grammar in Lark's form (llguidance) for the answer.")
    regex: str | None = Field(None, min_length=1, description="Not OpenAI's: a regular expression for the answer.")
    user: str | None = Field(None, description="Accepted, and without effect.")

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """At a stream's end."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    """Read for an earlier request already."""


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
