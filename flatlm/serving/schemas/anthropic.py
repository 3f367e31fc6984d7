"""/v1/messages, as Anthropic has it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from flatlm.serving.schemas.chat import NAME, Ignored
from flatlm.serving.schemas.common import Count, JsonObject, Stop, Strict
from flatlm.serving.schemas.shapes import LIST, TEXT, TEXT_OR_LIST, Kinds, Only, Refused, tag

CacheControl = Annotated[JsonObject | None, Field(description="Without effect: what prompts have in common is read once anyway.")]


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl = None
    citations: Annotated[None, Refused("nothing is cited")] = None


class ToolUseBlock(Strict):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject
    cache_control: CacheControl = None
    caller: JsonObject | None = Ignored


TEXTS = Kinds("blocks", ("text",))
Texts = Annotated[Annotated[str, TEXT] | Annotated[list[Annotated[TextBlock, TEXTS]], LIST], TEXT_OR_LIST]


class ToolResultBlock(Strict):
    """What the tool gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: CacheControl = None


BLOCKS = Kinds("blocks", ("text", "tool_use", "tool_result"))
Block = Annotated[
    Annotated[TextBlock, tag("text")] | Annotated[ToolUseBlock, tag("tool_use")] | Annotated[ToolResultBlock, tag("tool_result")],
    BLOCKS.discriminator,
    BLOCKS,
]


class InputMessage(Strict):
    """One turn. Pictures and documents are refused."""

    role: Literal["user", "assistant"]
    content: Annotated[Annotated[str, TEXT] | Annotated[list[Block], LIST], TEXT_OR_LIST]


class Tool(Strict):
    name: str = Field(pattern=NAME)
    input_schema: JsonObject
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    input_examples: list[JsonObject] | None = Ignored
    eager_input_streaming: bool | None = Ignored
    cache_control: CacheControl = None


class ToolChoice(Strict):
    """auto: as the model likes; any: some tool; tool: the named one; none: no tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = Field(None, description="true: the first call alone is told.")


class JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Strict):
    format: JsonFormat | None = None
    effort: str | None = Ignored


class Thinking(Strict):
    type: Annotated[str, Only("disabled", "these models do not think apart from their answer")]


class CountRequest(Strict):
    """A conversation, as the model would read it."""

    model: str = Field(max_length=1000)
    messages: list[InputMessage] = Field(min_length=1)
    system: Texts | None = None
    tools: list[Annotated[Tool, Kinds("tools", ("custom",), default="custom")]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl = None


class MessagesRequest(CountRequest):
    max_tokens: Count
    stop_sequences: list[Stop] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1, description="0: always the most probable token. By default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Count | None = None
    metadata: JsonObject | None = Ignored
    service_tier: str | None = Ignored
    inference_geo: str | None = Ignored
    container: Annotated[None, Refused("nothing is run here")] = None


class TokenCount(BaseModel):
    input_tokens: int


class MessageUsage(BaseModel):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageObject(BaseModel):
    """The answer. `content`: text, tool_use blocks, or both."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[JsonObject]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageErrorDetail(BaseModel):
    type: str
    message: str


class MessageErrorObject(BaseModel):
    """Every refusal."""

    type: Literal["error"] = "error"
    error: MessageErrorDetail
    request_id: Any = None
