"""Chat messages and tools as OpenAI's clients send them. Text alone: nothing is ever fetched."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from anyorder.server.schemas import Body


class TextPart(Body):
    """A part of a content."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """What an earlier answer called; `arguments` is JSON as text."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None


class Function(Body):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class ToolName(Body):
    """Which function."""

    name: str


class ToolChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: ToolName
