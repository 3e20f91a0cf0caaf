"""POST /v1/chat/completions: answers to messages, with tools, structure and log-probabilities."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal, Protocol

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Choice, Completion, Guide, Request
from anyorder.server.merging import merged
from anyorder.server.messages_in import ChatMessage, Tool, ToolChoice
from anyorder.server.schemas import (
    Body,
    Many,
    Sampling,
    check_limits,
    check_number,
    checked_guide,
    make_request,
)
from anyorder.server.service import Service, Tickets
from anyorder.server.shapes import chat_logprobs, new_id, usage, usage_of
from anyorder.server.sse import DONE, EventStream, event
from anyorder.server.texts import template_message
from anyorder.server.tool_calls import Call, CallReader, call_guide
from anyorder.server.worker import Delta, Ticket

router = APIRouter()


class ChatBody(Sampling):
    """A chat to be answered."""

    messages: Many[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def offered(self) -> list[Tool]:
        """Tools that the model is shown."""
        return [] if self.tool_choice == "none" else list(self.tools or ())

    def reader(self) -> CallReader | None:
        """What finds calls in an answer; None where there can be none."""
        names = [tool.function.name for tool in self.offered]
        return CallReader(names, several=self.parallel_tool_calls is not False) if names else None


@router.post("/v1/chat/completions", response_model=None)
async def create(body: ChatBody, http: HttpRequest) -> Response | dict[str, Any]:
    """Answer a chat."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    check(service, body)

    def build() -> list[Request]:
        return [build_request(service, http, body)]

    writer = _Writer(service, body)
    if body.stream:
        tickets = await service.open(http, build, num_choices=body.n or 1)
        return EventStream(service, tickets, writer.stream(tickets))
    return writer.answer(await service.run(http, build, num_choices=body.n or 1))


def check(service: Service, body: ChatBody) -> None:
    """Refuse what this endpoint cannot honour together."""
    limits = service.limits
    check_limits(limits, body)
    for name in ("max_tokens", "max_completion_tokens"):
        check_number(name, getattr(body, name), limits.max_tokens)
    check_number("top_logprobs", body.top_logprobs, limits.max_logprobs)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.")
    if None not in (body.max_tokens, body.max_completion_tokens):
        raise InvalidRequest("max_tokens and max_completion_tokens mean the same; give one.")
    if body.max_tokens == 0 or body.max_completion_tokens == 0:
        raise InvalidRequest("max_tokens is 0; ask for at least 1.")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise InvalidRequest("tool_choice needs tools.")
    if body.parallel_tool_calls is not None and not body.tools:
        raise InvalidRequest("parallel_tool_calls needs tools.")


def forced_guide(service: Service, body: ChatBody) -> Guide | None:
    """The guide of a tool_choice that leaves no choice but to call."""
    if body.tool_choice in (None, "none", "auto"):
        return None
    if body.response_format is not None and body.response_format.type != "text":
        raise InvalidRequest("tool_choice and response_format exclude each other.")
    functions = [tool.function.model_dump(exclude_none=True) for tool in body.offered]
    if isinstance(body.tool_choice, ToolChoice):
        wanted = body.tool_choice.function.name
        functions = [function for function in functions if function["name"] == wanted]
        if not functions:
            raise InvalidRequest(f"tool_choice names {wanted!r}, which is none of the tools.")
    return checked_guide(service.limits, call_guide(functions))


def as_chat(data: dict[str, Any], own: Body, names: Mapping[str, str]) -> ChatBody:
    """Another endpoint's body in this form; `names` are its own names for fields of this one."""
    try:
        return ChatBody.model_validate(data)
    except ValidationError as error:
        found = [
            {**item, "loc": (names.get(str(item["loc"][0]), item["loc"][0]), *item["loc"][1:])}
            for item in error.errors()
        ]
        body = own.model_dump(exclude_unset=True, by_alias=True)
        raise RequestValidationError(found, body=body) from None


def prompt_of(service: Service, body: ChatBody) -> list[int]:
    """The messages and tools as the model's template lays them out."""
    messages = [template_message(message.model_dump()) for message in body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in body.offered]
    return service.texts.encode_chat(messages, tools=tools or None)


class Writer(Protocol):
    """Puts the answer to a chat into another interface's form."""

    def answer(self, ticket: Ticket) -> dict[str, Any]:
        """All of it at once."""

    def stream(self, tickets: Tickets) -> AsyncIterator[str]:
        """As events."""


async def respond(
    http: HttpRequest,
    chat: ChatBody,
    writer: Writer,
    *,
    streams: bool,
    failure: Callable[[dict[str, Any]], str],
) -> Response | dict[str, Any]:
    """Answer a chat that came in another interface's form; `failure` makes an error an event."""
    service: Service = http.app.state.service
    check(service, chat)

    def build() -> list[Request]:
        return [build_request(service, http, chat)]

    if streams:
        tickets = await service.open(http, build, num_choices=1)
        return EventStream(service, tickets, writer.stream(tickets), failure=failure)

    async def work() -> dict[str, Any]:
        with await service.submit(build, num_choices=1) as tickets:
            await tickets[0].completion()
            return writer.answer(tickets[0])

    return await service.attended(http, work())


def build_request(service: Service, http: HttpRequest, body: ChatBody) -> Request:
    """The engine's request; for the preparing thread."""
    ids = prompt_of(service, body)
    service.check_prompt(ids, "messages")
    length = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
    return make_request(
        service,
        http,
        body,
        ids,
        guide=forced_guide(service, body),
        max_new_tokens=length,
        logprobs=body.top_logprobs or 0,
    )


class _Writer:
    """One call's answers in OpenAI's form."""

    def __init__(self, service: Service, body: ChatBody) -> None:
        self._texts = service.texts
        self._body = body
        self._head = {
            "id": new_id("chatcmpl"),
            "created": int(time.time()),
            "model": service.name,
            "method": service.method_of(body),
        }

    def answer(self, completions: list[Completion]) -> dict[str, Any]:
        """All of it at once."""
        (completion,) = completions
        choices = [self._choice(i, choice) for i, choice in enumerate(completion.choices)]
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": choices, "usage": usage(completions)}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        reason: str = choice.finish_reason
        reader = self._body.reader()
        if reader is not None:
            content = reader.push(choice.text)
            rest, calls = reader.finish()
            if calls:
                message["content"] = (content + rest).rstrip() or None
                message["tool_calls"] = [call.to_dict() for call in calls]
                reason = "tool_calls"
        logprobs = None
        if self._body.logprobs:
            logprobs = chat_logprobs(self._texts, choice.tokens, choice.logprobs, choice.trace)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    # ---------------------------------------------------------------------------------- streaming
    async def stream(self, tickets: Tickets) -> AsyncIterator[str]:
        """All of it as it comes."""
        readers: dict[int, CallReader | None] = {}
        with tickets as open_tickets:
            async for _, delta in merged(open_tickets):
                if delta.choice not in readers:
                    readers[delta.choice] = self._body.reader()
                    yield self._chunk(delta.choice, {"role": "assistant", "content": ""})
                for chunk in self._chunks(delta, readers[delta.choice]):
                    yield chunk
            if self._body.wants_usage:
                yield self._event([], usage_of(open_tickets))
            yield DONE

    def _chunks(self, delta: Delta, reader: CallReader | None) -> list[str]:
        """A delta's text, and what its end brings."""
        chunks, text = list[str](), delta.text
        reason: str | None = delta.finish_reason
        calls: list[Call] = []
        if reader is not None:
            text = reader.push(text)
            if reason is not None:
                rest, calls = reader.finish()
                text += rest
        logprobs = None
        if self._body.logprobs and delta.tokens:
            logprobs = chat_logprobs(self._texts, delta.tokens, delta.logprobs, delta.trace)
        if text or logprobs:
            chunks.append(self._chunk(delta.choice, {"content": text}, logprobs=logprobs))
        for index, call in enumerate(calls):
            chunks.append(
                self._chunk(delta.choice, {"tool_calls": [{"index": index, **call.to_dict()}]})
            )
        if reason is not None:
            reason = "tool_calls" if calls else reason
            chunks.append(self._chunk(delta.choice, {}, reason=reason))
        return chunks

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._event([choice], None)

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> str:
        data = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        if self._body.wants_usage:
            data["usage"] = usage
        return event(data)
