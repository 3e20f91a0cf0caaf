"""POST /v1/canvas: everything that happens to a text while it is decoded, as it happens.

Events of a stream, in the order of passes:
{"type": "reveal", "choice", "pass", "place", "token", "text", "probability", "alternatives",
"drafted"}: a token is final; pass 0: the request fixed it.
{"type": "preview", "choice", "pass", "place", "token", "text"}, with `history`: a token stands
there and is not final (a draft, a guess); token null: the place is open again.
{"type": "commit", "choice", "pass", "text", "tokens", "finish_reason"}, with `commits`: text that
has no open place before it any more, which is what other endpoints stream.
{"type": "done", "finish_reason", "usage", "choices"}, and then [DONE].
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Request
from anyorder.engine.text import Reveal
from anyorder.server.merging import merged
from anyorder.server.messages_in import ChatMessage
from anyorder.server.schemas import Many, Sampling, check_limits, check_number, make_request
from anyorder.server.service import Service, Tickets
from anyorder.server.shapes import usage_of
from anyorder.server.sse import DONE, EventStream, event
from anyorder.server.texts import Texts, template_message
from anyorder.server.worker import Delta, Ticket

router = APIRouter()


class CanvasBody(Sampling):
    """A prompt or messages; the answer is always a stream."""

    prompt: str | Many[int] | None = None
    messages: Many[ChatMessage] | None = None
    max_tokens: int | None = None
    top_logprobs: int | None = Field(None, ge=0)
    history: bool = Field(True, description="also tell what stood at places and was not final")
    commits: bool = Field(False, description="also tell what text is complete from the left")


@router.post("/v1/canvas", response_model=None)
async def create(body: CanvasBody, http: HttpRequest) -> Response:
    """Stream a decode."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    check_limits(service.limits, body)
    check_number("max_tokens", body.max_tokens, service.limits.max_tokens)
    check_number("top_logprobs", body.top_logprobs, service.limits.max_logprobs)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages.")
    if body.stream is False or body.stream_options is not None:
        raise InvalidRequest("stream: this endpoint always streams, and always ends with usage.")
    if body.max_tokens == 0:
        raise InvalidRequest("max_tokens is 0; ask for at least 1.")

    def build() -> list[Request]:
        return [build_request(service, http, body)]

    tickets = await service.open(http, build, num_choices=body.n or 1)
    return EventStream(service, tickets, stream(service.texts, body, tickets))


def build_request(service: Service, http: HttpRequest, body: CanvasBody) -> Request:
    """The engine's request; for the preparing thread."""
    if body.messages is not None:
        messages = [template_message(message.model_dump()) for message in body.messages]
        ids = service.texts.encode_chat(messages)
    else:
        assert body.prompt is not None, "there are a prompt or messages"
        text = body.prompt
        ids = service.texts.encode(text) if isinstance(text, str) else text
    service.check_prompt(ids, "prompt" if body.messages is None else "messages")
    return make_request(
        service,
        http,
        body,
        ids,
        max_new_tokens=body.max_tokens,
        logprobs=body.top_logprobs or 0,
        history=True,  # reveals are told with it; whoever wants no previews is sent none
    )


async def stream(texts: Texts, body: CanvasBody, tickets: Tickets) -> AsyncIterator[str]:
    """The events."""
    with tickets as open_tickets:
        (ticket,) = open_tickets
        for line in _fixed(texts, ticket):
            yield line
        async for _, delta in merged(open_tickets):
            for line in _lines(texts, body, delta):
                yield line
        completion = ticket.handle.result()
        choices = [
            {"index": i, "text": choice.text, "finish_reason": choice.finish_reason}
            for i, choice in enumerate(completion.choices)
        ]
        usage = usage_of(open_tickets)
        reason = completion.finish_reason if choices else None
        yield event({"type": "done", "finish_reason": reason, "usage": usage, "choices": choices})
        yield DONE


def _fixed(texts: Texts, ticket: Ticket) -> list[str]:
    """What the request itself put on the canvas."""
    lines = []
    for place, token in enumerate(ticket.handle.prepared.canvas or ()):
        for choice in range(len(ticket.handle.choices) if token is not None else 0):
            data = {"type": "reveal", "choice": choice, "pass": 0, "place": place, "token": token}
            more = {"probability": 1.0, "alternatives": [], "drafted": False}
            lines.append(event({**data, "text": texts.printable(token or 0), **more}))
    return lines


def _lines(texts: Texts, body: CanvasBody, delta: Delta) -> list[str]:
    """A delta as events, those of earlier passes first."""
    made: list[tuple[int, dict[str, Any]]] = []
    for preview in delta.previews if body.history else ():
        data = {"type": "preview", "place": preview.place, "token": preview.token}
        made.append((preview.step, {**data, "text": preview.text}))
    made += [(reveal.final.step, _reveal(texts, reveal)) for reveal in delta.reveals]
    if body.commits and (delta.tokens or delta.finish_reason is not None):
        data = {"type": "commit", "text": delta.text, "tokens": list(delta.tokens)}
        made.append((delta.step, {**data, "finish_reason": delta.finish_reason}))
    made.sort(key=lambda pair: pair[0])
    return [event({**data, "choice": delta.choice, "pass": step}) for step, data in made]


def _reveal(texts: Texts, reveal: Reveal) -> dict[str, Any]:
    final = reveal.final
    others = [
        {"token": token, "text": texts.printable(token), "probability": math.exp(logprob)}
        for token, logprob in final.alternatives
    ]
    return {
        "type": "reveal",
        "place": reveal.place,
        "token": final.token,
        "text": texts.printable(final.token),
        "probability": math.exp(final.logprob),
        "alternatives": others,
        "drafted": final.drafted,
    }
