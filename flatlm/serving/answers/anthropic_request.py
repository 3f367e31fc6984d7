"""/v1/messages to what /v1/chat/completions takes: one way to a job."""

import json
from collections.abc import Iterable
from typing import Any

from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.anthropic import (
    CountRequest,
    InputMessage,
    MessagesRequest,
    TextBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from flatlm.serving.schemas.chat import ChatRequest


def chat_request(request: CountRequest) -> ChatRequest:
    """The same, asked as a chat. BadRequest for turns that cannot be: one that begins an answer, a tool's result from the model."""
    if request.messages[-1].role == "assistant":
        raise BadRequest(
            "the last message is the assistant's, and answers are not begun for the model here: end with a user's", param="messages"
        )
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request),
        "tools": [_tool(tool.name, tool.description, tool.input_schema) for tool in request.tools] if request.tools else None,
        "tool_choice": _choice(request.tool_choice) if request.tools else None,
        "parallel_tool_calls": not (request.tool_choice is not None and request.tool_choice.disable_parallel_tool_use),
    }
    if request.output_config is not None and request.output_config.format is not None:
        schema = {"name": "answer", "schema": request.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(request, MessagesRequest):
        fields |= {
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop": request.stop_sequences or None,
            "stream": request.stream,
        }
    return ChatRequest.model_validate(fields)


def _messages(request: CountRequest) -> list[dict[str, Any]]:
    """Turns of one role that follow one another are one, as Anthropic has it; tools' results are turns of their own."""
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": _joined(request.system)})
    for place, message in enumerate(request.messages):
        for turn in _turns(message, place):
            last = messages[-1] if messages else None
            if last is not None and last["role"] == turn["role"] != "tool":
                last["content"] = "\n".join(filter(None, (last["content"], turn["content"])))
                last["tool_calls"] = [*(last.get("tool_calls") or ()), *(turn.get("tool_calls") or ())] or None
            else:
                messages.append(turn)
    return messages


def _turns(message: InputMessage, place: int) -> list[dict[str, Any]]:
    blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    if not blocks:
        raise BadRequest("a message without content: give a text, or blocks", param=f"messages[{place}].content")
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    calls = [block for block in blocks if isinstance(block, ToolUseBlock)]
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    if (calls and message.role == "user") or (results and message.role == "assistant"):
        what = "tool_use blocks are the assistant's" if calls else "tool_result blocks are the user's"
        raise BadRequest(what, param=f"messages[{place}].content")
    turns: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": each.tool_use_id, "content": _joined(each.content or "")} for each in results
    ]
    if texts or calls:
        turn: dict[str, Any] = {"role": message.role, "content": "".join(texts) if texts else None}
        if calls:
            turn["tool_calls"] = [_call(call) for call in calls]
        turns.append(turn)
    return turns


def _joined(content: str | Iterable[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _call(block: ToolUseBlock) -> dict[str, Any]:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}


def _tool(name: str, description: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _choice(choice: ToolChoice | None) -> Any:
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise BadRequest("a tool_choice of the type tool names one", param="tool_choice.name")
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
