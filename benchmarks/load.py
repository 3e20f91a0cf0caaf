"""Load and faults, as functions of a server's port: what the tests run in small, `serving` in full.

Every request is seeded, so that each answer has one right text: what the server writes when it
has nothing else to do.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.streams import Body, Streamed, connect, get, stream, until_idle

SUBJECTS = ("The sea", "My brother", "A small town", "The old engine", "Nobody", "This winter")
VERBS = ("is", "was once", "wanted to be", "looks like", "never was", "became")


async def mixed(port: int, num: int, *, max_tokens: int) -> list[Body]:
    """Different requests: every method that runs on this model, in turns, greedy and drawn."""
    told = json.loads(await get(port, "/v1/methods"))
    names = [method["name"] for method in told["data"] if method["usable"]]
    bodies: list[Body] = []
    for number in range(num):
        subject, verb = SUBJECTS[number % 6], VERBS[number // 6 % 6]
        body: dict[str, Any] = {
            "prompt": f"{number}. {subject} {verb}",
            "method": names[number % len(names)],
            "max_tokens": max_tokens,
            "seed": number,
            "stream_options": {"include_usage": True},
        }
        if number // len(names) % 2:
            body["temperature"] = 0
        bodies.append(body)
    return bodies


async def together(port: int, bodies: Sequence[Body]) -> list[Streamed]:
    """All at once."""
    return list(await asyncio.gather(*(stream(port, body) for body in bodies)))


async def alone(
    port: int, bodies: Sequence[Body], tell: Callable[[str], None] = lambda _: None
) -> list[Streamed]:
    """One after the other."""
    answers = []
    for number, body in enumerate(bodies):
        answers.append(await stream(port, body))
        tell(f"alone: {number + 1} of {len(bodies)}")
    return answers


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers under load, held against the same requests alone."""

    num: int
    lost: int
    """Without an end, or refused."""
    truncated: int
    """A beginning of the right text."""
    different: tuple[int, ...]
    """Numbers of those with another text."""


def compared(under_load: Sequence[Streamed], by_themselves: Sequence[Streamed]) -> Comparison:
    """Count what went wrong."""
    pairs = list(zip(under_load, by_themselves, strict=True))
    assert all(right.is_whole for right in by_themselves), "the server does not even answer alone"
    lost = sum(not seen.is_whole for seen, _ in pairs)
    others = [n for n, (seen, right) in enumerate(pairs) if seen.text != right.text]
    cut = [n for n in others if pairs[n][1].text.startswith(pairs[n][0].text)]
    different = tuple(n for n in others if n not in cut)
    return Comparison(num=len(pairs), lost=lost, truncated=len(cut), different=different)


# ------------------------------------------------------------------------- clients that misbehave
async def leave(port: int, body: Body, *, streams: bool, after: float) -> None:
    """Send a request and hang up after so many seconds."""
    _, writer = await connect(port, "/v1/completions", {**body, "stream": streams})
    await asyncio.sleep(after)
    writer.transport.abort()


async def disconnects(port: int, bodies: Sequence[Body], *, num: int, longest: float) -> float:
    """`num` clients that hang up at random times, half of them streaming; returns how long it took
    after the last of them until every page was free."""
    chance = random.Random(0)

    async def one(number: int) -> None:
        await asyncio.sleep(chance.uniform(0, longest))
        body = {**bodies[number % len(bodies)], "ignore_eos": True}
        if number % 2:
            body.pop("stream_options", None)
        after = chance.uniform(0, longest)
        await leave(port, body, streams=number % 2 == 0, after=after)

    await asyncio.gather(*(one(number) for number in range(num)))
    return await until_idle(port)


def stall(port: int, body: Body) -> socket.socket:
    """A client that asks for a stream and never reads it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.connect(("127.0.0.1", port))
    data = json.dumps({**body, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    made.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return made


async def churn(
    port: int,
    bodies: Sequence[Body],
    *,
    clients: int,
    seconds: float,
    sample: Callable[[float], None],
    every: float,
) -> dict[str, int]:
    """Clients that come and go for a while: streams, whole answers, some that hang up.

    `sample` is called with the time every so many seconds; returns how often what was done.
    """
    began = time.perf_counter()
    done = {"streamed": 0, "left": 0, "failed": 0}

    async def client(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() - began < seconds:
            body = chance.choice(bodies)
            if chance.random() < 0.2:
                await leave(port, body, streams=True, after=chance.uniform(0, 1))
                done["left"] += 1
                continue
            seen = await stream(port, body)
            done["streamed" if seen.is_whole else "failed"] += 1

    async def watch() -> None:
        while (now := time.perf_counter() - began) < seconds:
            sample(now)
            await asyncio.sleep(every)

    work: list[Awaitable[None]] = [client(number) for number in range(clients)]
    await asyncio.gather(watch(), *work)
    return done
