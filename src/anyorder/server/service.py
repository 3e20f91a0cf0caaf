"""What every endpoint needs: the worker, the limits, and waiting that ends with the client.

A handler of a web framework is not told that its client has gone away unless it asks; `attended`
asks, for answers that are not streamed, and `EventStream` for those that are.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from collections.abc import Sequence as Seq
from typing import Any, Protocol, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.server.errors import ApiError
from anyorder.server.limits import Limits
from anyorder.server.metrics import Metrics
from anyorder.server.texts import Texts
from anyorder.server.worker import Ticket, Worker

T = TypeVar("T")
RETRY_AFTER = "1"
"""Seconds that a client is told to wait before it tries again."""


class Chooses(Protocol):
    """A body that may name a method."""

    @property
    def method(self) -> str | None:
        """None: whichever the server takes."""


class Service:
    """One running server: its engine, its limits and what it counts."""

    def __init__(self, engine: Engine, *, limits: Limits, name: str, method: str) -> None:
        """`name` is what clients call the model; `method` decodes where a request names none."""
        self.engine = engine
        self.limits = limits
        self.name = name
        self.method = method
        self.created = int(time.time())
        self.draining = False
        self.texts = Texts(engine)
        self.metrics = Metrics()
        self.worker = Worker(engine)
        self._num_in_flight = 0

    @property
    def num_in_flight(self) -> int:
        """Answers being prepared, made or waiting."""
        return self._num_in_flight

    def method_of(self, body: Chooses) -> str:
        """The method that a body names, or else the server's."""
        return self.method if body.method is None else body.method

    def check_model(self, model: str | None) -> None:
        """404 for a model that is not the one that runs."""
        if model not in (None, self.name):
            raise ApiError(
                404,
                f"the model {model!r} does not run here; {self.name!r} does.",
                param="model",
                code="model_not_found",
            )

    def check_prompt(self, tokens: Seq[int], name: str) -> None:
        """Is it within the limit, and is there room in the queue? For the preparing thread."""
        limit = self.limits.max_prompt_tokens
        if len(tokens) > limit:
            raise InvalidRequest(
                f"{name} has {len(tokens)} tokens; this server takes at most {limit}."
            )
        queued = sum(
            len(ticket.handle.prepared.prompt)
            for ticket in self.worker.tickets
            if ticket.handle.admitted_at is None
        )
        if queued and queued + len(tokens) > self.limits.max_queued_tokens:
            raise self._overloaded(f"{queued} prompt tokens are waiting already")

    def shut_down(self) -> ApiError:
        """What clients are told from the signal on, and those whose answers take too long then."""
        headers = {"Retry-After": RETRY_AFTER}
        return ApiError(503, "the server is shutting down.", headers=headers)

    def _overloaded(self, why: str) -> ApiError:
        headers = {"Retry-After": RETRY_AFTER}
        return ApiError(429, f"{why}; try again later.", code="overloaded", headers=headers)

    # ------------------------------------------------------------------------------------ running
    async def submit(self, build: Callable[[], Seq[Request]], *, num_choices: int) -> Tickets:
        """Queue what `build` makes, which has so many choices; refused when too much runs."""
        if self.draining:
            raise self.shut_down()
        most = self.limits.max_in_flight
        if num_choices > most:
            raise InvalidRequest(
                f"n (or best_of) times the number of prompts is {num_choices}; this server makes "
                f"at most {most} answers at once."
            )
        if self._num_in_flight + num_choices > most:
            raise self._overloaded(f"{self._num_in_flight} answers are being made already")
        self._num_in_flight += num_choices
        try:
            tickets = await self.worker.submit(build)
        except BaseException:
            self._num_in_flight -= num_choices
            raise
        return Tickets(self, tickets, num_choices)

    def leave(self, num_choices: int) -> None:
        """So many answers are over."""
        self._num_in_flight -= num_choices

    async def run(
        self, http: HttpRequest, build: Callable[[], Seq[Request]], *, num_choices: int
    ) -> list[Completion]:
        """Submit and wait for all answers, or for the client to go away."""

        async def work() -> list[Completion]:
            with await self.submit(build, num_choices=num_choices) as tickets:
                return [await ticket.completion() for ticket in tickets]

        return await self.attended(http, work())

    async def open(
        self, http: HttpRequest, build: Callable[[], Seq[Request]], *, num_choices: int
    ) -> Tickets:
        """Submit for a stream: what is wrong with the request is said before the stream begins."""
        return await self.attended(http, self.submit(build, num_choices=num_choices))

    async def attended(self, http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled if the client goes away or time is up."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(disconnected(http.receive))
        try:
            await asyncio.wait(
                (task, gone),
                timeout=self.limits.max_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                return task.result()
            if gone.done():
                self.metrics.count_end("disconnect")
                raise ApiError(499, "the client went away.")
            self.metrics.count_end("timeout")
            raise ApiError(408, self.too_slow, headers={"x-should-retry": "false"})
        except asyncio.CancelledError:
            if not self.draining:
                raise
            raise self.shut_down() from None
        finally:
            for waiting in (task, gone):
                waiting.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    @property
    def too_slow(self) -> str:
        """What a client is told whose time is up."""
        return f"the request took longer than {self.limits.max_seconds:g} seconds; ask for less."


class Tickets:
    """The requests of one call. Leaving the `with` block drops those that still run."""

    def __init__(self, service: Service, tickets: list[Ticket], num_choices: int) -> None:
        self._service = service
        self._tickets = tickets
        self._num_choices = num_choices

    def __enter__(self) -> list[Ticket]:
        return self._tickets

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what they hold and count what they cost."""
        self._service.leave(self._num_choices)
        self._num_choices = 0
        self._service.worker.drop(self._tickets)
        for ticket in self._tickets:
            self._service.metrics.count_ticket(ticket)
        self._tickets = []


async def disconnected(receive: Receive) -> None:
    """Wait until the client goes away. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def salt_of(http: HttpRequest, salt: str) -> str:
    """Cached prefixes are shared among requests of the same key and the same `cache_salt` alone:
    who may not see a text must not find out from timing that somebody sent it."""
    key: str | None = http.scope.get("anyorder_key")
    return salt if key is None else f"{hashlib.sha256(key.encode()).hexdigest()} {salt}"
