"""Many requests through an engine, and their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A completion, with the draft checks it took (0 where nothing was drafted)."""

    completion: Completion
    num_checks: int
    num_checked: int
    """Tokens that the checks let stay or added."""


def answers(
    engine: Engine, requests: Iterable[Request], *, in_flight: int = 256
) -> Iterator[Answer]:
    """The requests' answers, in the requests' order; `in_flight` are under way at once.

    Requests are taken as they are needed, so there may be any number of them. Raises what makes one
    fail; the others are then dropped, as when the iterator is closed.
    """
    source = iter(requests)
    handles = deque(engine.submit_all(list(islice(source, in_flight))))
    try:
        while handles:
            while not handles[0].done:
                engine.tick()
                for _ in range(in_flight - sum(not handle.done for handle in handles)):
                    request = next(source, None)
                    if request is None:
                        break
                    handles.append(engine.submit(request))
            handle = handles.popleft()
            yield Answer(
                completion=handle.result(),
                num_checks=handle.num_checks,
                num_checked=handle.num_checked,
            )
    finally:
        for handle in handles:
            engine.abort(handle)


def reads(engine: Engine, text: str) -> bool:
    """Does a text fit into the model's encoder, if it has one?"""
    length, tokenizer = engine.abilities.source_length, engine.tokenizer
    return not length or tokenizer is None or len(tokenizer.encode(text)) <= length
