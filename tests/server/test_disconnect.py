"""Clients that go away: sockets closed in the middle, and the engine's pages counted."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.server.conftest import Live, running

from anyorder.core.request import Request
from anyorder.model.loaded import LoadedModel
from anyorder.server import sse
from anyorder.server.service import disconnected

BODY: dict[str, Any] = {
    "model": "tiny",
    "prompt": "The capital of France",
    "max_tokens": 200,
    "ignore_eos": True,
    "n": 2,
}


def connect(live: Live, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent."""
    address = urlsplit(live.url)
    assert address.hostname is not None and address.port is not None
    made = socket.create_connection((address.hostname, address.port))
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    made.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["autoregressive", "jacobi"])
def test_pages_are_free_within_two_ticks(live: Live, stream: bool, method: str) -> None:
    worker = live.service.worker
    store = live.service.engine.roles["target"].store
    live.wait_until(lambda: not worker.is_busy and store.num_available == store.num_pages)
    made = connect(live, "/v1/completions", {**BODY, "stream": stream, "method": method})
    live.wait_until(lambda: store.num_available < store.num_pages)
    # The count of ticks starts when the server learns of it: dropping is what is on trial.
    dropped_at: list[int] = []
    drop = worker.drop

    def counted(tickets: Any) -> None:
        dropped_at.append(worker.num_ticks)
        drop(tickets)

    worker.drop = counted  # type: ignore[method-assign]
    try:
        made.close()
        live.wait_until(lambda: bool(dropped_at))
        live.wait_until(lambda: store.num_available == store.num_pages)
        assert worker.num_ticks - dropped_at[0] <= 2
    finally:
        worker.drop = drop  # type: ignore[method-assign]
    live.wait_until(lambda: not worker.is_busy and live.service.num_in_flight == 0)


def test_the_server_learns_of_it_at_once(live: Live) -> None:
    """The texts would take 400 ticks; after a disconnect there are only a few more."""
    worker = live.service.worker
    for stream in (False, True):
        live.wait_until(lambda: not worker.is_busy)
        made = connect(live, "/v1/completions", {**BODY, "stream": stream})
        live.wait_until(lambda: worker.is_busy)
        before = worker.num_ticks
        made.close()
        live.wait_until(lambda: not worker.is_busy)
        assert worker.num_ticks - before < 100


def test_disconnects_at_any_time(live: Live) -> None:
    store = live.service.engine.roles["target"].store
    for number in range(30):
        made = connect(live, "/v1/completions", {**BODY, "stream": number % 2 == 0})
        time.sleep(0.004 * (number % 7))
        made.close()
    live.wait_until(lambda: not live.service.worker.is_busy)
    live.wait_until(lambda: live.service.num_in_flight == 0)
    assert store.num_available == store.num_pages
    answer = live.http.post("/v1/completions", json={**BODY, "max_tokens": 2})
    assert answer.status_code == 200


def test_a_reader_that_does_not_read_stalls_nobody(live: Live) -> None:
    made = connect(live, "/v1/completions", {**BODY, "stream": True, "logprobs": 20})
    started = time.perf_counter()
    answer = live.http.post("/v1/completions", json={**BODY, "max_tokens": 5})
    assert answer.status_code == 200 and time.perf_counter() - started < 5
    made.close()
    live.wait_until(lambda: not live.service.worker.is_busy)


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_counted_as_what_it_is(live: Live, stream: bool) -> None:
    def counted(reason: str) -> int:
        found = re.search(rf'choices_total{{finish_reason="{reason}"}} (\d+)', metrics())
        return int(found[1]) if found else 0

    def metrics() -> str:
        return live.http.get("/metrics").text

    worker = live.service.worker
    live.wait_until(lambda: not worker.is_busy)
    before = {reason: counted(reason) for reason in ("disconnect", "timeout", "error")}
    made = connect(live, "/v1/completions", {**BODY, "stream": stream})
    live.wait_until(lambda: worker.is_busy)
    made.close()
    live.wait_until(lambda: not worker.is_busy and live.service.num_in_flight == 0)
    after = {reason: counted(reason) for reason in before}
    assert after == {**before, "disconnect": before["disconnect"] + 1}


def test_the_rest_of_a_body_is_no_disconnect() -> None:
    """Servers may still hand over what a client sent late."""
    messages = [{"type": "http.request", "body": b"", "more_body": False}] * 2
    messages.append({"type": "http.disconnect"})
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    asyncio.run(disconnected(receive))
    assert list(left) == []
    left = iter(messages[-1:])
    asyncio.run(disconnected(receive))


def test_time_is_up_for_those_who_do_not_read(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that takes nothing any more keeps neither pages nor a place in the queue."""
    monkeypatch.setattr(sse, "FAREWELL_SECONDS", 0.1)
    limits = dataclasses.replace(live.service.limits, max_seconds=0.3)
    monkeypatch.setattr(live.service, "limits", limits)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 3:
            await asyncio.Event().wait()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def stream() -> None:
        build = lambda: [Request(prompt="The", max_new_tokens=900, ignore_end=True)]  # noqa: E731
        tickets = await live.service.submit(build, num_choices=1)

        async def events() -> AsyncIterator[str]:
            with tickets as (ticket,):
                async for delta in ticket.deltas():
                    yield sse.event({"text": delta.text})

        async with asyncio.timeout(10):
            await sse.EventStream(live.service, tickets, events())({}, receive, send)

    asyncio.run(stream())
    assert live.service.num_in_flight == 0
    live.wait_until(lambda: not live.service.worker.is_busy)


def test_bodies_must_arrive(model: LoadedModel) -> None:
    with running(model, {"max_seconds": 0.3}) as live:
        address = urlsplit(live.url)
        assert address.hostname is not None
        with socket.create_connection((address.hostname, address.port or 0)) as made:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n"
            made.sendall(head.encode() + b'{"prompt": ')
            answer = b""
            while piece := made.recv(4096):  # until the server closes it
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive" in answer
