"""Load and faults in small: what benchmarks.serving does to the default model, on the tiny one."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load import alone, churn, compared, disconnects, mixed, stall, together
from benchmarks.servers import ServerProcess, anyorder_server, free_port
from benchmarks.streams import Streamed, get, stream, until_idle
from tests.server.conftest import Live

from anyorder.core import lookup


def port_of(live: Live) -> int:
    return int(live.url.rpartition(":")[2])


def test_answers_are_those_of_being_alone(live: Live) -> None:
    """Every method of the model, all at once."""
    port = port_of(live)

    async def ask() -> tuple[list[dict[str, Any]], list[Streamed], list[Streamed]]:
        bodies = [dict(body) for body in await mixed(port, 24, max_tokens=8)]
        return bodies, await together(port, bodies), await alone(port, bodies)

    bodies, seen, right = asyncio.run(ask())
    assert {body["method"] for body in bodies} == set(live.service.engine.usable_methods)
    assert len({answer.text for answer in right}) > 12
    result = compared(seen, right)
    assert (result.num, result.lost, result.truncated, result.different) == (24, 0, 0, ())
    assert all(answer.num_tokens and answer.first is not None for answer in seen)


def test_what_goes_wrong_is_told_apart() -> None:
    def one(text: str, **change: Any) -> Streamed:
        return Streamed(**{"text": text, "reason": "stop", "closed": True, **change})

    right = [one("abc"), one("abd"), one("abe"), one("abf")]
    seen = [one("abc"), one("ab"), one("abf"), one("abf", closed=False)]
    result = compared(seen, right)
    assert (result.lost, result.truncated, result.different) == (1, 1, (2,))


def test_random_disconnects(live: Live) -> None:
    port = port_of(live)

    async def ask() -> Streamed:
        bodies = await mixed(port, 12, max_tokens=60)
        await disconnects(port, bodies, num=60, longest=0.5)
        return await stream(port, {"prompt": "The", "max_tokens": 3})

    assert asyncio.run(ask()).is_whole
    store = live.service.engine.roles["target"].store
    assert store.num_available == store.num_pages and not live.service.worker.is_busy


def test_a_failing_request_fails_alone_among_others(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = lookup.find("methods", "lookahead", kind="method")

    def decode(self: Any, context: Any) -> Any:
        with context.sequence():
            yield from ()
            raise RuntimeError("on purpose")

    port = port_of(live)

    async def ask() -> tuple[list[dict[str, Any]], list[Streamed], list[Streamed]]:
        bodies = [dict(body) for body in await mixed(port, 16, max_tokens=6)]
        sound = [body for body in bodies if body["method"] != "lookahead"]
        right = await alone(port, sound)
        monkeypatch.setattr(cls, "decode", decode)
        return bodies, await together(port, bodies), right

    bodies, seen, right = asyncio.run(ask())
    bad = [answer for body, answer in zip(bodies, seen, strict=True) if is_bad(body)]
    good = [answer for body, answer in zip(bodies, seen, strict=True) if not is_bad(body)]
    assert bad and all(answer.error and not answer.closed for answer in bad)
    assert compared(good, right).different == () and all(answer.is_whole for answer in good)
    live.wait_until(lambda: not live.service.worker.is_busy)
    store = live.service.engine.roles["target"].store
    assert store.num_available == store.num_pages


def is_bad(body: dict[str, Any]) -> bool:
    """Does it use the method that fails?"""
    return bool(body["method"] == "lookahead")


def test_readers_that_do_not_read_stall_nobody(live: Live) -> None:
    port = port_of(live)
    heavy = {"prompt": "On and on", "max_tokens": 200, "ignore_eos": True, "logprobs": 20}
    stalled = [stall(port, {**heavy, "seed": seed}) for seed in range(3)]
    live.wait_until(lambda: len(live.service.worker.tickets) == 3)
    answers = [asyncio.run(stream(port, {"prompt": "The", "max_tokens": 5})) for _ in range(2)]
    assert all(answer.is_whole for answer in answers)
    live.wait_until(lambda: not live.service.worker.is_busy, seconds=60)  # nobody waits for them
    store = live.service.engine.roles["target"].store
    assert store.num_available == store.num_pages
    for one in stalled:
        one.close()
    asyncio.run(until_idle(port))


def test_memory_does_not_grow(live: Live) -> None:
    """Python's objects: after many requests there are as many as after a few."""
    port = port_of(live)

    async def work() -> None:
        bodies = await mixed(port, 12, max_tokens=4)
        assert all(answer.is_whole for answer in await together(port, bodies))
        await disconnects(port, bodies, num=6, longest=0.1)

    sizes = []
    for _ in range(4):
        asyncio.run(work())
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert sizes[3] - sizes[1] < 300, sizes


async def some_time(port: int, seconds: float) -> tuple[dict[str, int], list[float]]:
    times: list[float] = []
    bodies = await mixed(port, 12, max_tokens=4)
    done = await churn(port, bodies, clients=4, seconds=seconds, sample=times.append, every=0.2)
    await until_idle(port)
    return done, times


def test_clients_come_and_go_for_a_while(live: Live) -> None:
    done, times = asyncio.run(some_time(port_of(live), 1.0))
    assert done["streamed"] and not done["failed"]
    assert times == sorted(times) and times[-1] < 1


@pytest.mark.slow
def test_killed_and_started_again(folder: Path) -> None:
    port = free_port()
    command = anyorder_server(str(folder), port)
    with ServerProcess(command, port) as server:
        first = asyncio.run(stream(port, {"prompt": "The", "max_tokens": 5, "seed": 1}))

        async def cut() -> list[Streamed]:
            long = {"prompt": "On", "max_tokens": 900, "ignore_eos": True}
            pending = asyncio.ensure_future(together(port, [long] * 5))
            await asyncio.sleep(0.5)
            server.process.kill()
            return list(await pending)

        assert not any(answer.is_whole for answer in asyncio.run(cut()))
        server.process.wait()
    with ServerProcess(command, port) as server:  # the same port, at once
        again = asyncio.run(stream(port, {"prompt": "The", "max_tokens": 5, "seed": 1}))
        assert first.is_whole and again.text == first.text
        assert "anyorder_ticks_total" in asyncio.run(get(port, "/metrics"))
        assert server.resident_mb > 10
        assert server.end() == 0
