"""One thread ticks the engine; answers come to the event loop that asked for them.

Requests of all clients share the engine's passes. A second thread reads prompts and a third one
compiles grammars, so that neither keeps a pass nor the event loop waiting, nor a slow grammar those
who have none. Between two ticks the engine's thread drops what clients no longer want, so a client
that went away holds its pages for no longer than the tick that was running and the one after it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from anyorder.core.request import Completion, FinishReason, Preview, Request, TraceEntry
from anyorder.engine.engine import Engine
from anyorder.engine.handle import Handle
from anyorder.engine.text import Reveal

log = logging.getLogger("anyorder.server")


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one tick added to one choice."""

    choice: int
    step: int
    """Passes that the request had taken part in by then."""
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    trace: tuple[TraceEntry, ...] = ()
    """One entry a token."""
    finish_reason: FinishReason | None = None
    """Set on a choice's last delta."""
    reveals: tuple[Reveal, ...] = ()
    previews: tuple[Preview, ...] = ()
    """With `Request.history`."""


class Ticket:
    """A submitted request, as its client's coroutine holds it."""

    def __init__(self, handle: Handle, loop: asyncio.AbstractEventLoop) -> None:
        self.handle = handle
        self.loop = loop
        self.news: asyncio.Queue[Delta | None] = asyncio.Queue()
        """None: the request is over."""
        self.first_text_at: float | None = None
        self._shown = [0] * len(handle.choices)
        self._num_reveals = [0] * len(handle.choices)
        self._num_previews = [0] * len(handle.choices)

    def collect(self) -> list[Delta | None]:
        """For the engine's thread: what is new."""
        news: list[Delta | None] = []
        handle = self.handle
        while handle.events:
            event = handle.events.popleft()
            if event.completion is not None:
                continue
            if self.first_text_at is None:
                self.first_text_at = time.perf_counter()
            first = self._shown[event.choice]
            end = self._shown[event.choice] = first + len(event.tokens)
            choice = handle.choices[event.choice]
            news.append(
                Delta(
                    choice=event.choice,
                    step=handle.num_passes,
                    text=event.text,
                    tokens=event.tokens,
                    logprobs=tuple(choice.logprobs[first:end]),
                    trace=tuple(choice.trace[first:end]),
                    finish_reason=event.finish_reason,
                )
            )
        if handle.prepared.request.history:
            news = [*self._changes(), *news]
        if handle.done:
            news.append(None)
        return news

    def _changes(self) -> list[Delta | None]:
        changes: list[Delta | None] = []
        for number, choice in enumerate(self.handle.choices):
            reveals = tuple(choice.reveals[self._num_reveals[number] :])
            previews = tuple(choice.history[self._num_previews[number] :])
            self._num_reveals[number] += len(reveals)
            self._num_previews[number] += len(previews)
            if reveals or previews:
                step = self.handle.num_passes
                delta = Delta(choice=number, step=step, reveals=reveals, previews=previews)
                changes.append(delta)
        return changes

    async def deltas(self) -> AsyncIterator[Delta]:
        """What is made, as it is made; raises what made the request fail."""
        while (delta := await self.news.get()) is not None:
            yield delta
        self.handle.result()

    async def completion(self) -> Completion:
        """The answer once it is complete; raises what made the request fail."""
        async for _ in self.deltas():
            pass
        return self.handle.result()


class Worker:
    """Owns the threads. Everything but `submit`, which needs a loop, works from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_ticks = 0
        self.ticked_at = time.perf_counter()
        self._tickets: dict[Ticket, None] = {}
        self._unwanted: list[Ticket] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._preparing = ThreadPoolExecutor(1, "anyorder-prepare")
        self._compiling = ThreadPoolExecutor(1, "anyorder-compile")
        self._thread = threading.Thread(target=self._run, name="anyorder-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Does the engine's thread run?"""
        return self._thread.is_alive()

    @property
    def is_busy(self) -> bool:
        """Is there a request that has not ended?"""
        return bool(self._tickets)

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """Requests that have not ended."""
        with self._changed:
            return tuple(self._tickets)

    async def submit(self, build: Callable[[], Seq[Request]]) -> list[Ticket]:
        """Queue what `build` makes, in the other threads; UserError if it cannot be served."""
        loop = asyncio.get_running_loop()
        future: Future[Any] = self._preparing.submit(self._prepare, build, loop)
        try:
            made: list[Ticket] | Future[list[Ticket]] = await asyncio.wrap_future(future)
            if isinstance(made, Future):
                future = made
                made = await asyncio.wrap_future(made)
            return made
        except asyncio.CancelledError:
            future.add_done_callback(self._disown)
            raise

    def _prepare(
        self, build: Callable[[], Seq[Request]], loop: asyncio.AbstractEventLoop
    ) -> list[Ticket] | Future[list[Ticket]]:
        requests = build()
        if any(request.guide is not None for request in requests):
            return self._compiling.submit(self._queue, requests, loop)
        return self._queue(requests, loop)

    def _queue(self, requests: Seq[Request], loop: asyncio.AbstractEventLoop) -> list[Ticket]:
        tickets = [Ticket(handle, loop) for handle in self.engine.submit_all(requests)]
        with self._changed:
            self._tickets.update(dict.fromkeys(tickets))
            self._changed.notify()
        return tickets

    def _disown(self, future: Future[Any]) -> None:
        """Nobody waits any more for what was being prepared."""
        if future.cancelled() or future.exception() is not None:
            return
        made = future.result()
        if isinstance(made, Future):
            made.add_done_callback(self._disown)
        else:
            self.drop(made)

    def drop(self, tickets: Seq[Ticket]) -> None:
        """Forget requests and free their pages. Harmless for those that are done."""
        with self._changed:
            self._unwanted += tickets
            self._changed.notify()

    def stop(self) -> None:
        """End all threads; what still runs is aborted."""
        self._preparing.shutdown(cancel_futures=True)
        self._compiling.shutdown(cancel_futures=True)
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self.engine.close()

    # --------------------------------------------------------------------- in the engine's thread
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._tickets or self._unwanted or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
                unwanted, self._unwanted = self._unwanted, []
            for ticket in unwanted:
                self.engine.abort(ticket.handle)
            self._tick()
            self._publish()

    def _tick(self) -> None:
        try:
            self.engine.tick()
        except Exception:
            # A request's own failures end that request inside the tick. What arrives here is
            # nobody's in particular: all that runs ends, and the next requests are served.
            log.exception("a tick failed")
            self.engine.close()
        self.num_ticks += 1
        self.ticked_at = time.perf_counter()

    def _publish(self) -> None:
        for ticket in self.tickets:
            news = ticket.collect()
            if ticket.handle.done:
                with self._changed:
                    del self._tickets[ticket]
            if news:
                try:
                    ticket.loop.call_soon_threadsafe(_deliver, ticket, news)
                except RuntimeError:  # the loop is closed, and with it everybody who listened
                    self.drop([ticket])


def _deliver(ticket: Ticket, news: list[Delta | None]) -> None:
    for item in news:
        ticket.news.put_nowait(item)
