"""POST /v1/responses: OpenAI's newer form of a chat, without state between calls.

A body becomes that of a chat completion, so both endpoints understand the same things. Nothing is
stored: earlier turns are part of `input`, and `previous_response_id` is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from anyorder.core.request import Completion
from anyorder.server.chat import ChatBody, as_chat, respond
from anyorder.server.errors import own_names
from anyorder.server.merging import merged
from anyorder.server.schemas import Body, Extras, Many
from anyorder.server.service import Service, Tickets
from anyorder.server.shapes import costs, new_id, usage
from anyorder.server.sse import event
from anyorder.server.tool_calls import Call
from anyorder.server.worker import Ticket

router = APIRouter()
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "response_format": "text",
}
"""Fields of a chat completion, and what they are called here."""


class InputPart(Body):
    """A part of a content."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=0)


class Item(Body):
    """What all items may carry over from an earlier answer; it changes nothing."""

    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]


class CallItem(Item):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Item):
    """What the call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


def _kind(item: Any) -> str | None:
    """A message need not say that it is one."""
    found = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return found if isinstance(found, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionPick(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class PlainFormat(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """The form of the text."""

    format: PlainFormat | SchemaFormat | None = Field(None, discriminator="type")


class ResponsesBody(Extras):
    """What is to be answered."""

    input: str | Many[InputItem] = Field(min_length=1)
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionPick | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    store: Literal[False] | None = None
    user: str | None = Field(None, description="a label of the caller; it changes nothing")


@router.post("/v1/responses", response_model=None)
async def create(body: ResponsesBody, http: HttpRequest) -> Response | dict[str, Any]:
    """Answer a chat."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    chat = chat_body(body)
    writer = _Writer(service, body, chat)
    with own_names(_NAMES):
        return await respond(http, chat, writer, streams=bool(body.stream), failure=_failure)


def _failure(body: dict[str, Any]) -> str:
    return event(body, "error")


# ---------------------------------------------------------------------------------- to a chat body
def chat_body(body: ResponsesBody) -> ChatBody:
    """The same as the body of a chat completion."""
    same = (*Extras.model_fields, "temperature", "top_p", "parallel_tool_calls")
    data: dict[str, Any] = {name: getattr(body, name) for name in same}
    data["max_completion_tokens"] = body.max_output_tokens
    data["messages"] = _messages(body)
    if body.tools:
        functions = [tool.model_dump(exclude={"type"}) for tool in body.tools]
        data["tools"] = [{"type": "function", "function": function} for function in functions]
    data["tool_choice"] = body.tool_choice
    if isinstance(body.tool_choice, FunctionPick):
        named = {"name": body.tool_choice.name}
        data["tool_choice"] = {"type": "function", "function": named}
    wanted = body.text.format if body.text is not None else None
    if wanted is not None:
        data["response_format"] = {"type": wanted.type}
        if isinstance(wanted, SchemaFormat):
            schema = {"name": wanted.name, "schema": wanted.schema_}
            data["response_format"]["json_schema"] = schema
    return as_chat(data, body, _NAMES)


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        if isinstance(item, CallItem):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages.append({"role": "assistant", "tool_calls": [call]})
        elif isinstance(item, CallOutputItem):
            answer = {"tool_call_id": item.call_id, "content": item.output}
            messages.append({"role": "tool", **answer})
        else:
            content = item.content
            if isinstance(content, list):
                content = "".join(part.text for part in content)
            messages.append({"role": item.role, "content": content})
    return messages


# --------------------------------------------------------------------------------------- the answer
class _Writer:
    """One call's answer in the form of the Responses API."""

    def __init__(self, service: Service, body: ResponsesBody, chat: ChatBody) -> None:
        self._body = body
        self._chat = chat
        self._number = 0
        self._message_id = new_id("msg")
        self._head: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": service.name,
            "method": service.method_of(body),
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "tool_choice": _plain(body.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
        }

    def answer(self, ticket: Ticket) -> dict[str, Any]:
        """All of it at once."""
        completion = ticket.handle.result()
        text, calls = completion.text, list[Call]()
        reader = self._chat.reader()
        if reader is not None:
            shown = reader.push(text)
            rest, calls = reader.finish()
            text = shown + rest
        return self._whole(completion, text, calls)

    def _whole(self, completion: Completion, text: str, calls: list[Call]) -> dict[str, Any]:
        is_cut = completion.finish_reason == "length" and not calls
        status = "incomplete" if is_cut else "completed"
        output = [self._message(text, status)] if text or not calls else []
        output += [_call_item(call, "completed") for call in calls]
        counts = usage([completion])
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": output,
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {
                    **counts["prompt_tokens_details"],
                    "cache_write_tokens": 0,
                },
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
                **costs([completion]),
            },
        }

    def _message(self, text: str, status: str) -> dict[str, Any]:
        content = [_part(text)] if status != "in_progress" else []
        head = {"type": "message", "id": self._message_id, "role": "assistant"}
        return {**head, "status": status, "content": content}

    # ---------------------------------------------------------------------------------- streaming
    async def stream(self, tickets: Tickets) -> AsyncIterator[str]:
        """All of it as it comes."""
        with tickets as open_tickets:
            begun = {**self._head, "status": "in_progress", "output": [], "usage": None}
            begun["incomplete_details"] = None
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
            reader, shown, calls = self._chat.reader(), "", list[Call]()
            where = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
            async for _, delta in merged(open_tickets):
                text = delta.text if reader is None else reader.push(delta.text)
                if reader is not None and delta.finish_reason is not None:
                    rest, calls = reader.finish()
                    text += rest
                over = delta.finish_reason is not None
                if not shown and (text or (over and not calls)):
                    item = self._message("", "in_progress")
                    yield self._event("response.output_item.added", output_index=0, item=item)
                    yield self._event("response.content_part.added", **where, part=_part(""))
                if text:
                    shown += text
                    yield self._event(
                        "response.output_text.delta", **where, delta=text, logprobs=[]
                    )
            whole = self._whole(open_tickets[0].handle.result(), shown, calls)
            for index, item in enumerate(whole["output"]):
                for line in self._item_end(index, item, where, shown):
                    yield line
            yield self._event(f"response.{whole['status']}", response=whole)

    def _item_end(
        self, index: int, item: dict[str, Any], where: Mapping[str, Any], text: str
    ) -> list[str]:
        """What ends a message, and all there is to say of a call."""
        if item["type"] == "message":
            return [
                self._event("response.output_text.done", **where, text=text, logprobs=[]),
                self._event("response.content_part.done", **where, part=_part(text)),
                self._event("response.output_item.done", output_index=index, item=item),
            ]
        at = {"item_id": item["id"], "output_index": index}
        empty = {**item, "arguments": "", "status": "in_progress"}
        kind, said = "response.function_call_arguments", item["arguments"]
        return [
            self._event("response.output_item.added", output_index=index, item=empty),
            self._event(f"{kind}.delta", **at, delta=said),
            self._event(f"{kind}.done", **at, name=item["name"], arguments=said),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(call: Call, status: str) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    head = {"type": "function_call", "id": new_id("fc"), "call_id": call.id}
    return {**head, "name": call.name, "arguments": arguments, "status": status}


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Body) else value
