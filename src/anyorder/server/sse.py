"""Server-sent events: a stream that ends with its client, its time or its text.

An event is one line of JSON. Between events that take long, a comment keeps the connection awake;
clients skip it. A failure in the middle is an event with "error", and nothing follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from anyorder.server.errors import ApiError, envelope
from anyorder.server.service import Service, Tickets, disconnected

PING_SECONDS = 15.0
FAREWELL_SECONDS = 2.0
"""A client whose time is up is told so, unless it has stopped reading."""
DONE = "data: [DONE]\n\n"


def event(data: dict[str, Any], name: str | None = None) -> str:
    """One event, with the name that some protocols want."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(Response):
    """Streams what `make` yields for the tickets, which it drops however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        service: Service,
        tickets: Tickets,
        events: AsyncIterator[str],
        *,
        failure: Callable[[dict[str, Any]], str] = event,
    ) -> None:
        """`failure` writes the event for an error's envelope."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._tickets = tickets
        self._events = events
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        started = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(started)
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait(
                (sending, gone),
                timeout=self._service.limits.max_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if gone.done() and not sending.done():
                self._service.metrics.count_end("disconnect")
                return
            if not sending.done():
                self._service.metrics.count_end("timeout")
                await self._cut(send, sending, ApiError(408, self._service.too_slow))
                return
            sending.result()
            await _write(send, "", more=False)
        except asyncio.CancelledError:
            if not self._service.draining:
                raise
            await self._cut(send, sending, self._service.shut_down())
        finally:
            self._tickets.close()
            for waiting in (sending, gone):
                waiting.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _cut(self, send: Send, sending: asyncio.Future[None], error: ApiError) -> None:
        """Free what the answer holds, and then tell why it ends here."""
        sending.cancel()
        self._tickets.close()
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await _write(send, self._failure(envelope(error)[1]))
                await _write(send, "", more=False)

    async def _send(self, send: Send) -> None:
        queue: asyncio.Queue[str | None] = asyncio.Queue(1)

        async def produce() -> None:
            try:
                async for text in self._events:
                    await queue.put(text)
            except Exception as error:  # whatever it is, the client is told
                await queue.put(self._failure(envelope(error)[1]))
            await queue.put(None)

        producer = asyncio.ensure_future(produce())
        try:
            while True:
                try:  # not wait_for, which may swallow that it is cancelled
                    async with asyncio.timeout(PING_SECONDS):
                        text = await queue.get()
                except TimeoutError:
                    text = ": still at work\n\n"
                if text is None:
                    return
                await _write(send, text)
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)


async def _write(send: Send, text: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
