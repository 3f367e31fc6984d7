"""/v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from flatlm.serving.schemas.chat import NAME, Ignored, JsonObjectFormat, TextFormat
from flatlm.serving.schemas.common import Count, JsonObject, Strict
from flatlm.serving.schemas.shapes import LIST, NO_STATE, OBJECT, TEXT, TEXT_OR_LIST, TEXT_OR_OBJECT, Kinds, Only, Refused, tag


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    """As an answer had it."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = Ignored
    logprobs: list[Any] | None = Ignored


PARTS = Kinds("parts", ("input_text", "output_text"))
Part = Annotated[Annotated[InputText, tag("input_text")] | Annotated[OutputText, tag("output_text")], PARTS.discriminator, PARTS]
Content = Annotated[Annotated[str, TEXT] | Annotated[list[Part], LIST], TEXT_OR_LIST]
Status = Literal["in_progress", "completed", "incomplete"]


class InputMessage(Strict):
    """One turn. Pictures, sound and files are refused."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: str | None = Ignored


class FunctionCall(Strict):
    """A call that the model made. `arguments`: a JSON object, as text."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionCallOutput(Strict):
    """What the function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[Annotated[str, TEXT] | Annotated[list[Annotated[InputText, Kinds("parts", ("input_text",))]], LIST], TEXT_OR_LIST]
    id: str | None = None
    status: Status | None = None


ITEMS = Kinds("items", ("message", "function_call", "function_call_output"), default="message")
Item = Annotated[
    Annotated[InputMessage, tag("message")]
    | Annotated[FunctionCall, tag("function_call")]
    | Annotated[FunctionCallOutput, tag("function_call_output")],
    ITEMS.discriminator,
    ITEMS,
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionChoice(Strict):
    type: Literal["function"]
    name: str


ToolChoice = Annotated[Annotated[Literal["none", "auto", "required"], TEXT] | Annotated[FunctionChoice, OBJECT], TEXT_OR_OBJECT]


class JsonSchemaText(Strict):
    type: Literal["json_schema"]
    name: str = Field(pattern=NAME)
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Strict):
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaText, Field(discriminator="type")] | None = None
    verbosity: str | None = Ignored


class ResponseStreamOptions(Strict):
    include_obfuscation: bool | None = Ignored


class ResponsesRequest(Strict):
    model: str = Field(max_length=1000)
    input: Annotated[Annotated[str, TEXT] | Annotated[list[Item], LIST], TEXT_OR_LIST]
    instructions: str | None = Field(None, description="The system's message, before the input.")
    max_output_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0: always the most probable token. By default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextConfig | None = None
    tools: list[Annotated[FunctionTool, Kinds("tools", ("function",))]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: the first call alone is told.")
    metadata: dict[str, str] | None = Field(None, description="Told again in the answer.")
    store: Annotated[bool | None, Only(False, "nothing is stored; leave it out, or say false")] = None
    truncation: Annotated[str | None, Only("disabled", "inputs are never cut; leave it out, or say disabled")] = None
    previous_response_id: Annotated[None, Refused(NO_STATE)] = None
    conversation: Annotated[None, Refused(NO_STATE)] = None
    prompt: Annotated[None, Refused("there are no stored prompts")] = None
    background: Annotated[bool | None, Only(False, "an answer is written while its request waits")] = None
    include: Annotated[list[str], Field(max_length=0, description="There is nothing more to tell.")] | None = None
    reasoning: Annotated[None, Refused("these models do not reason apart from their answer")] = None
    max_tool_calls: Annotated[None, Refused("tools are run by the client")] = None
    context_management: Annotated[None, Refused("inputs are never cut")] = None
    top_logprobs: Annotated[None, Refused("ask /v1/chat/completions for logprobs")] = None
    service_tier: str | None = Ignored
    user: str | None = Ignored
    safety_identifier: str | None = Ignored
    prompt_cache_key: str | None = Ignored
    prompt_cache_retention: str | None = Ignored


class InputTokensDetails(BaseModel):
    cached_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(BaseModel):
    """The answer. `output`: a message, function calls, or both."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[JsonObject]
    usage: ResponseUsage | None
    incomplete_details: JsonObject | None
    error: JsonObject | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: JsonObject
    tools: list[JsonObject]
    tool_choice: str | JsonObject
    parallel_tool_calls: bool
    metadata: dict[str, str]
    previous_response_id: None
    store: bool
    truncation: str
