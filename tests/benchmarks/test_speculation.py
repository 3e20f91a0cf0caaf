"""The speculation harness with fake sides: turns, figures, and what counts as failed."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.identity import gap
from benchmarks.speculation import PLAIN, Sample, measure, rows, table
from benchmarks.texts import KINDS, hundred

from anyorder.core.request import TraceEntry

log: list[str] = []


def side(name: str, seconds: float, passes: int, token: int = 7) -> Any:
    def answer(prompt: list[int], num_new: int) -> Sample:
        log.append(name)
        return Sample(
            seconds=seconds,
            decode_seconds=seconds / 2 if name == PLAIN else seconds / 4,
            num_new=num_new,
            num_passes=passes,
            checks=[num_new / passes],
            texts=[[token] * num_new],
        )

    return answer


def run(**wrong: Any) -> list[dict[str, Any]]:
    log.clear()
    sides = {PLAIN: side(PLAIN, 2.0, 10), "fast": side("fast", 0.5, 4, **wrong)}
    prompts = {"copy": [[1], [2], [3]], "chat": [[4]]}
    return rows(measure(sides, prompts, num_new=10, rounds=2, tell=lambda _: None))


def test_figures() -> None:
    found = {(row["text"], row["decoding"]): row for row in run()}
    fast = found["copy", "fast"]
    assert fast["ratio"] == {"median": 4.0, "least": 4.0, "most": 4.0}
    assert fast["decode_ratio"] == {"median": 8.0, "least": 8.0, "most": 8.0}
    assert fast["tokens_per_pass"] == fast["accepted_length"] == 2.5
    assert fast["tokens_per_second"] == 20.0
    assert (fast["equal"], fast["answers"]) == (6, 6)
    assert found["chat", PLAIN]["ratio"]["median"] == 1.0
    lines = table(list(found.values())).splitlines()
    ratios = "**4.00** [4.00-4.00] | **8.00** [8.00-8.00]"
    assert f"| copy | fast | 2.50 | 2.50 | 20.0 | {ratios} | 6/6 |" in lines


def test_other_answers_are_counted() -> None:
    found = {(row["text"], row["decoding"]): row for row in run(token=8)}
    assert (found["chat", "fast"]["equal"], found["chat", "fast"]["answers"]) == (0, 2)


def test_sides_take_turns() -> None:
    run()
    # A warm-up of one prompt a kind, then two rounds.
    assert log.count(PLAIN) == log.count("fast") == 2 + 2 * 4
    firsts = log[::2]
    assert {PLAIN, "fast"} == set(firsts[2:6])


def test_the_gap_is_where_texts_part() -> None:
    def entry(token: int, **chances: float) -> TraceEntry:
        others = tuple((int(name[1:]), chance) for name, chance in chances.items())
        return TraceEntry(token=token, text="", step=1, probability=0.5, alternatives=others)

    class Answer:
        def __init__(self, tokens: list[int], trace: Any = ()) -> None:
            self.tokens, self.trace = tokens, trace

    plain = Answer([1, 2, 3], [entry(1), entry(2, t2=0.5, t9=0.25), entry(3)])
    assert gap(plain, Answer([1, 9, 4])) == pytest.approx(0.6931, abs=1e-4)
    assert gap(plain, Answer([1, 8, 4])) == float("inf")


def test_prompts() -> None:
    assert len(set(hundred())) == 100
    assert all(len(texts) == 6 for texts in KINDS.values())
