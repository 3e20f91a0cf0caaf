"""POST /v1/messages and /v1/messages/count_tokens: answers to messages in Anthropic's form.

A body becomes that of a chat completion, so both endpoints understand the same things.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Choice
from anyorder.server.chat import ChatBody, as_chat, prompt_of, respond
from anyorder.server.errors import own_names
from anyorder.server.merging import merged
from anyorder.server.schemas import Body, Extras, Many
from anyorder.server.service import Service, Tickets
from anyorder.server.shapes import costs, new_id, usage_of
from anyorder.server.sse import event
from anyorder.server.tool_calls import Call
from anyorder.server.worker import Ticket

router = APIRouter()
_NAMES = {"stop": "stop_sequences"}
"""Fields of a chat completion, and what they are called here."""


class TextBlock(Body):
    """A part of a content that is text."""

    type: Literal["text"]
    text: str


class ToolUseBlock(Body):
    """A call of a tool, by an earlier answer."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Body):
    """What a tool answered. Templates know no errors: the text of one begins with the word."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(Body):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class ToolDefinition(Body):
    """A tool."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None


class ToolMode(Body):
    """Whether a tool must be called."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class ToolPick(Body):
    """The tool that must be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class Metadata(Body):
    """Who asks; it changes nothing."""

    user_id: str | None = None


class PromptBody(Body):
    """What an answer is to."""

    model: str | None = None
    messages: Many[Message] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolMode | ToolPick | None = Field(None, discriminator="type")


class MessagesBody(PromptBody, Extras):
    """A chat to be answered."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    metadata: Metadata | None = None


@router.post("/v1/messages", response_model=None)
async def create(body: MessagesBody, http: HttpRequest) -> Response | dict[str, Any]:
    """Answer a chat."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    chat = chat_body(body)
    writer = _Writer(service, body, chat)
    with own_names(_NAMES):
        return await respond(http, chat, writer, streams=bool(body.stream), failure=_failure)


@router.post("/v1/messages/count_tokens")
def count_tokens(body: PromptBody, http: HttpRequest) -> dict[str, int]:
    """How many tokens a prompt has."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    return {"input_tokens": len(prompt_of(service, chat_body(body)))}


def _failure(body: dict[str, Any]) -> str:
    return event(body, "error")


# ---------------------------------------------------------------------------------- to a chat body
def chat_body(body: PromptBody) -> ChatBody:
    """The same as the body of a chat completion."""
    data: dict[str, Any] = {"messages": _messages(body)}
    if isinstance(body, MessagesBody):
        for name in (*Extras.model_fields, "max_tokens", "temperature", "top_p"):
            data[name] = getattr(body, name)
        data["stop"] = body.stop_sequences
    if body.tools:
        data["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                },
            }
            for tool in body.tools
        ]
    if body.tool_choice is not None:
        pick = body.tool_choice
        if isinstance(pick, ToolPick):
            data["tool_choice"] = {"type": "function", "function": {"name": pick.name}}
        else:
            data["tool_choice"] = "required" if pick.type == "any" else pick.type
        if pick.disable_parallel_tool_use:
            data["parallel_tool_calls"] = False
    return as_chat(data, body, _NAMES)


def _messages(body: PromptBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.system is not None:
        messages.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        blocks = message.content
        if isinstance(blocks, str):
            messages.append({"role": message.role, "content": blocks})
            continue
        calls, texts = [], []
        wrong = ToolResultBlock if message.role == "assistant" else ToolUseBlock
        for block in blocks:
            if isinstance(block, wrong):
                raise InvalidRequest(f"messages: no {block.type} by the {message.role}.")
            if isinstance(block, ToolUseBlock):
                function = {"name": block.name, "arguments": json.dumps(block.input)}
                calls.append({"id": block.id, "type": "function", "function": function})
            elif isinstance(block, ToolResultBlock):
                content = _text(block.content or "")
                content = f"Error: {content}" if block.is_error else content
                messages.append(
                    {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
                )
            else:
                texts.append(block.text)
        if texts or calls:
            own: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
            messages.append({**own, "tool_calls": calls} if calls else own)
    return messages


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


# --------------------------------------------------------------------------------------- the answer
class _Writer:
    """One call's answer in Anthropic's form."""

    def __init__(self, service: Service, body: MessagesBody, chat: ChatBody) -> None:
        self._service = service
        self._body = body
        self._chat = chat
        self._head = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": service.name,
            "method": service.method_of(body),
        }

    def answer(self, ticket: Ticket) -> dict[str, Any]:
        """All of it at once."""
        choice = ticket.handle.result().choices[0]
        content, calls = choice.text, list[Call]()
        reader = self._chat.reader()
        if reader is not None:
            shown = reader.push(choice.text)
            rest, calls = reader.finish()
            content = shown + rest
        blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if content else []
        blocks += [{**_call_block(call), "input": dict(call.arguments)} for call in calls]
        return {
            **self._head,
            "content": blocks,
            **self._end(ticket, choice, calls),
            "usage": _usage(ticket),
        }

    def _end(self, ticket: Ticket, choice: Choice, calls: list[Call]) -> dict[str, Any]:
        reason, matched = "end_turn", None
        if calls:
            reason = "tool_use"
        elif choice.finish_reason == "length":
            reason = "max_tokens"
        elif self._body.stop_sequences and not (
            set(choice.tokens[-1:]) & ticket.handle.prepared.end_tokens
        ):
            reason = "stop_sequence"
            text = self._service.texts.decode(choice.tokens)
            found = [stop for stop in self._body.stop_sequences if stop in text]
            matched = min(found, key=text.index, default=None)
        return {"stop_reason": reason, "stop_sequence": matched}

    async def stream(self, tickets: Tickets) -> AsyncIterator[str]:
        """All of it as it comes."""
        with tickets as (ticket,):
            empty = {"input_tokens": len(ticket.handle.prepared.given), "output_tokens": 0}
            start: dict[str, Any] = {**self._head, "content": [], "stop_reason": None}
            start |= {"stop_sequence": None, "usage": empty}
            yield _named({"type": "message_start", "message": start})
            reader, number, has_text, calls = self._chat.reader(), 0, False, list[Call]()
            async for _, delta in merged([ticket]):
                text = delta.text if reader is None else reader.push(delta.text)
                if reader is not None and delta.finish_reason is not None:
                    rest, calls = reader.finish()
                    text += rest
                if text and not has_text:
                    has_text = True
                    yield _opened(number, {"type": "text", "text": ""})
                if text:
                    yield _changed(number, {"type": "text_delta", "text": text})
            if has_text:
                yield _named({"type": "content_block_stop", "index": number})
                number += 1
            for index, call in enumerate(calls, number):
                yield _opened(index, {**_call_block(call), "input": {}})
                arguments = json.dumps(call.arguments, ensure_ascii=False)
                yield _changed(index, {"type": "input_json_delta", "partial_json": arguments})
                yield _named({"type": "content_block_stop", "index": index})
            end = self._end(ticket, ticket.handle.result().choices[0], calls)
            yield _named({"type": "message_delta", "delta": end, "usage": _usage(ticket)})
            yield _named({"type": "message_stop"})


def _named(data: dict[str, Any]) -> str:
    return event(data, data["type"])


def _opened(index: int, block: dict[str, Any]) -> str:
    return _named({"type": "content_block_start", "index": index, "content_block": block})


def _changed(index: int, delta: dict[str, Any]) -> str:
    return _named({"type": "content_block_delta", "index": index, "delta": delta})


def _call_block(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _usage(ticket: Ticket) -> dict[str, Any]:
    usage = usage_of([ticket])
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
        **costs([ticket.handle.result()]),
    }
