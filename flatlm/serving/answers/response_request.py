"""/v1/responses to what /v1/chat/completions takes: one way to a job."""

from collections.abc import Mapping, Sequence
from typing import Any

from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.chat import ChatRequest
from flatlm.serving.schemas.responses import (
    FunctionCall,
    FunctionCallOutput,
    FunctionChoice,
    InputMessage,
    InputText,
    JsonSchemaText,
    OutputText,
    ResponsesRequest,
)


def chat_request(request: ResponsesRequest) -> ChatRequest:
    """The same, asked as a chat. BadRequest for an input without a turn."""
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request),
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": request.stream,
        "tools": [_tool(tool.model_dump(exclude_none=True)) for tool in request.tools] if request.tools else None,
        "tool_choice": _choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _format(request),
    }
    return ChatRequest.model_validate(fields)


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    items = [InputMessage(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    if not items:
        raise BadRequest("input is empty; give at least one message", param="input")
    for item in items:
        match item:
            case InputMessage():
                messages.append({"role": item.role, "content": _joined(item.content)})
            case FunctionCall():
                call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
                if messages and messages[-1]["role"] == "assistant":  # calls belong to the turn that they are in
                    messages[-1].setdefault("tool_calls", []).append(call)
                else:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            case FunctionCallOutput():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
    return messages


def _joined(content: str | Sequence[InputText | OutputText]) -> str:
    """A text, or the texts of its parts."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _tool(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {key: value for key, value in fields.items() if key != "type"}}


def _choice(choice: "str | FunctionChoice | None") -> Any:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, FunctionChoice) else choice


def _format(request: ResponsesRequest) -> dict[str, Any] | None:
    form = None if request.text is None else request.text.format
    if form is None:
        return None
    if isinstance(form, JsonSchemaText):
        given = form.model_dump(by_alias=True, exclude_none=True)
        return {"type": given.pop("type"), "json_schema": given}
    return form.model_dump()
