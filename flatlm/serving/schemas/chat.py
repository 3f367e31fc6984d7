"""/v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from flatlm.serving.schemas.common import FinishReason, JsonObject, Strict, Usage, WritingRequest

NAME = r"^[a-zA-Z0-9_.:-]{1,128}$"


class TextPart(Strict):
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """One turn. `content` is text, or parts of the type text: pictures, sound and files are refused. What is only ever null is what
    answers have elsewhere, so that an answer can be sent back as it came.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("refused", "a message of the role {role} has content", {"role": self.role})
        if self.tool_call_id is None and self.role == "tool":
            raise PydanticCustomError("refused", "a message of the role tool names the call that it answers: its tool_call_id")
        return self


class FunctionDefinition(Strict):
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    name: str


class NamedToolChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchema(Strict):
    name: str = Field(pattern=NAME)
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Ignored = Field(None, description="Accepted, and without effect.")


class ChatRequest(WritingRequest):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="As max_tokens, and wins over it.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: the first call alone is told.")
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = Ignored
    store: bool | None = Ignored
    service_tier: str | None = Ignored
    safety_identifier: str | None = Ignored
    prompt_cache_key: str | None = Ignored
    prompt_cache_retention: str | None = Ignored
    reasoning_effort: str | None = Ignored
    verbosity: str | None = Ignored
    prediction: JsonObject | None = Ignored


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob] | None
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
