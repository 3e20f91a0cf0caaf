"""What outlives a request: by salt and name, made once, the least recently used forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.test_attention import drain
from tests.tiny import tiny_engine

from anyorder.core.forward import Decoding, forward
from anyorder.core.method import Context, Method
from anyorder.core.request import Request
from anyorder.engine import memory
from anyorder.engine.engine import Engine
from anyorder.engine.memory import Memory


def test_made_once_for_each_salt_and_name() -> None:
    things, made = Memory(), []

    def make() -> list[int]:
        made.append(1)
        return []

    first = things.recall("", "a", make)
    assert things.recall("", "a", make) is first
    others = [things.recall("", "b", make), things.recall("s", "a", make)]
    assert all(other is not first for other in others) and others[0] is not others[1]
    assert len(made) == 3


def test_the_least_recently_used_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LARGEST", 3)
    things = Memory()

    def known(name: str) -> bool:
        return things._things.get(("", name)) is not None

    for name in ("a", "b", "c", "a", "d"):
        things.recall("", name, object)
    assert [known(name) for name in "abcd"] == [True, False, True, True]


def remembered(
    engine: Engine, script: Callable[[Context], object], *requests: Request
) -> list[object]:
    """What a method sees of `Context.shared` in each of these requests, one after the other."""
    found = []

    class Remembering(Method):
        def decode(self, context: Context) -> Decoding:
            found.append(script(context))
            with context.sequence() as sequence:
                result = yield from forward(sequence, context.prompt, 0)
                context.emit(result.tokens, result.logprobs)

    for request in requests:
        import dataclasses

        prepared = dataclasses.replace(engine._admission.prepare(request), method=Remembering())
        engine._queue(prepared, [None] * request.n)
        drain(engine)
    return found


def test_requests_share_by_salt_unless_they_are_private() -> None:
    def ask(**changes: Any) -> Request:
        return Request(prompt=[1, 2], max_new_tokens=1, **changes)

    engine = tiny_engine()
    found = remembered(
        engine,
        lambda context: context.shared("list", list),
        ask(),
        ask(),
        ask(cache_salt="mine"),
        ask(cache_salt="mine"),
        ask(prefix_cache=False, n=2),
        ask(prefix_cache=False),
        ask(),
    )
    plain, again, salted, salted_again, private, same_request, other_request, last = found
    assert plain is again is last
    assert salted is salted_again
    assert private is same_request, "the choices of one request share"
    groups = {id(thing) for thing in (plain, salted, private, other_request)}
    assert len(groups) == 4
    assert len(engine._memory._things) == 2, "what is private takes no room from others"
