"""One half of the runs is worked on while the pass of the other half is computed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.methods.test_contract import ALL, assert_equal, contract_engine
from tests.tiny import assert_no_page_is_lost, run_out, tiny_engine

from anyorder.core.request import Completion, Request
from anyorder.engine import engine as module
from anyorder.engine.engine import Engine
from anyorder.engine.run import Run


@pytest.fixture(scope="module")
def expected() -> list[Completion]:
    return contract_engine().generate(ALL)


@pytest.mark.parametrize("changes", [{}, {"max_batch_tokens": 7}, {"max_running": 3}], ids=str)
def test_every_method_gives_the_same_answers(
    expected: list[Completion], changes: dict[str, Any]
) -> None:
    engine = contract_engine(overlap=True, **changes)
    order = list(range(len(ALL)))
    random.Random(1).shuffle(order)
    completions = engine.generate([ALL[index] for index in order])
    for index, completion in zip(order, completions, strict=True):
        assert_equal(completion, expected[index])
    assert_no_page_is_lost(engine)


def test_preempted_runs_give_the_same_answers(expected: list[Completion]) -> None:
    engine = contract_engine(overlap=True)
    handles = [engine.submit(request) for request in ALL[::5]]
    # Odd and even ticks: runs lose their pages before their pass and after it.
    run_out(engine, preempt_at={3, 10, 24, 61, 120})
    for handle, other in zip(handles, expected[::5], strict=True):
        assert_equal(handle.result(), other)
    assert sum(handle.result().report.num_preemptions for handle in handles) > len(handles)
    assert_no_page_is_lost(engine)


def events_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, frozenset[int]]]:
    """What happens to whom: passes begin, are answered, and runs go on."""
    found: list[tuple[str, frozenset[int]]] = []

    def recorded(name: str, who: Callable[[Any], frozenset[int]]) -> None:
        plain = getattr(module, name)

        def run(role: Any, given: Any) -> Any:
            found.append((name, who(given)))
            return plain(role, given)

        monkeypatch.setattr(module, name, run)

    recorded("run_pass", lambda pieces: frozenset(p.job.run.arrival for p in pieces))
    recorded("answer", lambda questions: frozenset(q.job.run.arrival for q in questions))
    advance = Run.advance

    def advanced(self: Run) -> None:
        found.append(("advance", frozenset({self.arrival})))
        advance(self)

    monkeypatch.setattr(Run, "advance", advanced)
    return found


def test_runs_go_on_between_a_pass_of_others_and_its_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tiny_engine(overlap=True)
    requests = [Request(prompt=[seed + 1, 5], max_new_tokens=6) for seed in range(6)]
    for request in requests:
        engine.submit(request)
    events = events_of(engine, monkeypatch)
    run_out(engine)
    flying: frozenset[int] = frozenset()
    between = 0
    for name, runs in events:
        if name == "run_pass":
            flying = runs
            assert len({arrival % 2 for arrival in runs}) == 1
        elif name == "answer":
            assert runs == flying
            flying = frozenset()
        elif flying:
            assert not runs & flying
            between += 1
    # All but the last answers of one half, behind which no pass is left to wait for.
    assert between >= sum(name == "advance" for name, _ in events) - 3


def test_without_it_all_runs_share_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    for seed in range(4):
        engine.submit(Request(prompt=[seed + 1, 5], max_new_tokens=3))
    events = events_of(engine, monkeypatch)
    run_out(engine)
    assert {len(runs) for name, runs in events if name == "run_pass"} == {4}


def test_a_single_request_is_answered_and_streamed() -> None:
    request = Request(prompt=[1, 5], max_new_tokens=5)
    expected = tiny_engine().generate(request)
    engine = tiny_engine(overlap=True)
    assert engine.generate(request).tokens == expected.tokens
    events = list(engine.stream(request))
    assert [token for event in events for token in event.tokens] == expected.tokens


def test_who_fails_while_others_are_computed_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(overlap=True)
    requests = [Request(prompt=[seed + 1, 5], max_new_tokens=6) for seed in range(4)]
    expected = [tiny_engine().generate(request).tokens for request in requests]
    bad = dataclasses.replace(requests[0], seed=77)
    advance = Run.advance

    def advanced(self: Run) -> None:
        if self.request.seed == 77 and self.num_passes == 3:
            raise ValueError("broken")
        advance(self)

    monkeypatch.setattr(Run, "advance", advanced)
    handles = [engine.submit(request) for request in (bad, *requests[1:])]
    run_out(engine)
    with pytest.raises(Exception, match="broken"):
        handles[0].result()
    assert [handle.result().tokens for handle in handles[1:]] == expected[1:]
    assert_no_page_is_lost(engine)
