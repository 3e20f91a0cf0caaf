"""Streamed completions over bare sockets: hundreds of them cost less than the server they measure.

Requests are HTTP/1.0, so a body ends with its connection. What a stream must have at its end is
told apart: a finish reason, the usage, and [DONE].
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]


@dataclass(kw_only=True)
class Streamed:
    """What a client saw."""

    text: str = ""
    num_tokens: int = 0
    first: float | None = None
    """Seconds until the first text."""
    seconds: float = 0.0
    reason: str | None = None
    closed: bool = False
    """[DONE] came."""
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        """Does nothing miss?"""
        return self.error is None and self.reason is not None and self.closed


async def connect(
    port: int, path: str, body: Body | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a request was sent; GET without a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.0\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


async def stream(port: int, body: Body, *, path: str = "/v1/completions") -> Streamed:
    """One completion, streamed to its end."""
    seen, began = Streamed(), time.perf_counter()
    try:
        reader, writer = await connect(port, path, {**body, "stream": True})
        try:
            status = (await reader.readline()).split()
            while (await reader.readline()).strip():
                pass
            if status[1:2] != [b"200"]:
                seen.error = (await reader.read()).decode() or "no answer"
            while line := await reader.readline():
                _read(seen, line, time.perf_counter() - began)
        finally:
            writer.close()
    except OSError as error:  # the other side is gone
        seen.error = str(error) or type(error).__name__
    seen.seconds = time.perf_counter() - began
    return seen


def _read(seen: Streamed, line: bytes, now: float) -> None:
    """One line of a stream."""
    if not line.startswith(b"data:"):
        return
    text = line[5:].strip()
    if text == b"[DONE]":
        seen.closed = True
        return
    data = json.loads(text)
    if "error" in data:
        seen.error = str(data["error"])
    if data.get("usage"):
        seen.num_tokens = data["usage"]["completion_tokens"]
    for choice in data.get("choices", ()):
        seen.text += choice.get("text") or ""
        seen.reason = choice.get("finish_reason") or seen.reason
        if seen.first is None and choice.get("text"):
            seen.first = now


async def get(port: int, path: str) -> str:
    """A page's text."""
    reader, writer = await connect(port, path)
    try:
        return (await reader.read()).partition(b"\r\n\r\n")[2].decode()
    finally:
        writer.close()


async def gauges(port: int) -> dict[str, float]:
    """The numbers of /metrics by name, labels and all."""
    lines = (await get(port, "/metrics")).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def until_idle(port: int, *, seconds: float = 60.0) -> float:
    """Wait until no answer is being made and every page is free; how long that took."""
    began = time.perf_counter()
    while True:
        told = await gauges(port)
        used = [value for name, value in told.items() if name.startswith("anyorder_kv_cache")]
        waited = time.perf_counter() - began
        if not any(used) and not told["anyorder_answers_in_flight"]:
            return waited
        if waited > seconds:
            raise RuntimeError(f"after {seconds:g} seconds something is still held: {told}")
        await asyncio.sleep(0.02)
