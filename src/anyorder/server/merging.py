"""The deltas of several tickets as one stream, each with its ticket's number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq

from anyorder.server.worker import Delta, Ticket


async def merged(tickets: Seq[Ticket]) -> AsyncIterator[tuple[int, Delta]]:
    """(number of the ticket, delta), as they come; raises the first failure of any ticket."""
    queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

    async def pump(number: int, ticket: Ticket) -> None:
        try:
            async for delta in ticket.deltas():
                queue.put_nowait((number, delta))
        except Exception as error:  # handed over below
            queue.put_nowait(error)
        queue.put_nowait(None)

    pumps = [asyncio.ensure_future(pump(n, ticket)) for n, ticket in enumerate(tickets)]
    try:
        num_open = len(pumps)
        while num_open:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
