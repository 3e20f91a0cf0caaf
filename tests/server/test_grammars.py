"""A grammar that takes long to compile keeps nobody waiting but those who have one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.server.conftest import Live
from tests.server.test_disconnect import connect

from anyorder.core.request import Guide
from anyorder.sampling.guide import GuideCompiler

GUIDED: dict[str, Any] = {
    "prompt": "The",
    "max_tokens": 8,
    "response_format": {"type": "regex", "regex": "[xy]{3}"},
}
PLAIN: dict[str, Any] = {"prompt": "The", "max_tokens": 4}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Compiling has begun, and may go on: events."""
    begun, go = threading.Event(), threading.Event()
    compile = GuideCompiler._compile

    def slow(self: GuideCompiler, guide: Guide) -> Any:
        begun.set()
        assert go.wait(60)
        return compile(self, guide)

    monkeypatch.setattr(GuideCompiler, "_compile", slow)
    yield begun, go
    go.set()


def test_others_are_answered_meanwhile(
    live: Live, held: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = held
    texts: list[str] = []

    def ask() -> None:
        answer = live.http.post("/v1/completions", json=GUIDED)
        texts.append(answer.json()["choices"][0]["text"])

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(30)
    for body in (PLAIN, {**PLAIN, "stream": True}):
        assert live.http.post("/v1/completions", json=body).status_code == 200
    assert live.http.get("/health").status_code == 200
    assert texts == []
    go.set()
    thread.join()
    assert len(texts[0]) == 3 and set(texts[0]) <= {"x", "y"}


def test_whoever_leaves_meanwhile_leaves_nothing(
    live: Live, held: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = held
    wanted = {"type": "regex", "regex": "[yz]{900}"}
    body = {**GUIDED, "response_format": wanted, "max_tokens": 900}
    made = connect(live, "/v1/completions", body)
    assert begun.wait(30)
    made.close()
    live.wait_until(lambda: live.service.num_in_flight == 0)
    worker, store = live.service.worker, live.service.engine.roles["target"].store
    before = worker.num_ticks
    go.set()
    worker._compiling.submit(int).result()  # it has been compiled and queued by now
    live.wait_until(lambda: not worker.is_busy and store.num_available == store.num_pages)
    assert worker.num_ticks - before < 100
