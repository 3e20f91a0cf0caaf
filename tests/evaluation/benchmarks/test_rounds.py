"""Rounds with fake workers: turns, figures, and workers that die."""

from __future__ import annotations

from typing import Any

import pytest
from tests.evaluation.benchmarks.stand_ins import SLOWNESS, Fake

from anyorder.evaluation.benchmarks.rounds import Figures, Plan, measure
from anyorder.evaluation.benchmarks.sides import SIDES, Side
from anyorder.evaluation.benchmarks.works import WORKS, Work, prompts

START, MEMORY, DECODE, PREFILL, COPY, BATCH, LARGE = WORKS
COPIED = [[7] * length for length in range(31, 39)]
Log = list[tuple[str, str]]


def run(
    *works: Work, rounds: int = 3, figures: Figures | None = None, dying: str = "", at: int = 0
) -> tuple[Figures, Log]:
    """The figures, and what the workers were told."""
    figures, log = figures or Figures(), []
    plan = Plan(sides=SIDES, works=works, vocabulary=49152, copied=COPIED)
    measure(
        plan,
        figures,
        lambda side, _: Fake(side, log, at if side.name == dying else 0),
        rounds=rounds,
        progress=lambda *_: None,
    )
    return figures, log


@pytest.mark.parametrize(
    ("work", "first", "last"),
    [
        (START, 1.0, 14.0),
        (MEMORY, 100.0, 1400.0),
        (DECODE, 1000.0, 1000 / 14),  # 127 tokens in (128 - 1) ms and fourteen times that
        (PREFILL, 1_024_000.0, 1_024_000 / 14),
        (BATCH, 16_000.0, 16_000 / 14),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_figures(work: Work, first: float, last: float) -> None:
    figures, _ = run(work)
    assert len(SIDES) == 14
    assert figures.values[work.name][SIDES[0].name] == pytest.approx([first] * 3)
    assert figures.values[work.name][SIDES[-1].name] == pytest.approx([last] * 3)


def test_sides_take_turns_at_every_work_and_begin_in_turn() -> None:
    _, log = run(PREFILL, BATCH)
    names = [side.name for side in SIDES]
    asked = [name for what, name in log if what == "ask"][::2]  # the warm-up comes first
    turns = [asked[i : i + 14] for i in range(0, len(asked), 14)]
    assert len(turns) == 6 and all(sorted(turn) == sorted(names) for turn in turns)
    assert [turn[0] for turn in turns] == [names[i] for i in (0, 0, 1, 1, 2, 2)]


def test_every_round_has_processes_of_its_own_and_fresh_works_come_first() -> None:
    figures, log = run(DECODE, START, rounds=2)
    for what in ("open", "close"):
        assert sorted(name for w, name in log if w == what) == sorted([*SLOWNESS, *SLOWNESS])
    first = [what for what, name in log if name == SIDES[0].name]
    assert first[: len(first) // 2] == ["open", "ask", "ask", "ask", "close"]
    assert figures.num_rounds == 2


def test_rounds_are_added_to_those_there_are() -> None:
    figures, _ = run(DECODE, rounds=1)
    figures, log = run(DECODE, rounds=2, figures=figures)
    assert {len(v) for v in figures.values["decode"].values()} == {3} and figures.num_rounds == 3
    assert log[0] == ("open", SIDES[1].name)  # the second round begins with the second side


def test_a_worker_that_dies_has_failed_at_that_work_alone() -> None:
    figures, log = run(PREFILL, BATCH, dying="llama.cpp Q8_0", at=1024)
    assert figures.failures["prefill"] == {"llama.cpp Q8_0": "no room"}
    assert not figures.failures["batch"]
    assert "llama.cpp Q8_0" not in figures.values["prefill"]
    assert len(figures.values["batch"]["llama.cpp Q8_0"]) == 3
    assert len(figures.values["prefill"]) == 13
    opened, closed = ([n for w, n in log if w == what] for what in ("open", "close"))
    assert sorted(opened) == sorted(closed)


def test_a_network_of_its_own_is_opened_for_its_work_alone() -> None:
    figures, log = run(DECODE, LARGE, rounds=2)
    assert set(figures.values["large"]) == {"anyorder int8", "anyorder int4"}
    assert {len(found) for found in figures.values["large"].values()} == {2}
    usual, own = ["open", "ask", "ask"], ["close", "open", "ask", "ask", "ask", "close"]
    assert [what for what, name in log if name == "anyorder int4"] == [*usual, *own] * 2
    opened: list[Work | None] = []

    def start(side: Side, work: Work | None) -> Fake:
        opened.append(work)
        return Fake(side, [])

    for sides in ([SIDES[0]], [side for side in SIDES if side.name == "anyorder int8"]):
        plan = Plan(sides=sides, works=[DECODE, LARGE], vocabulary=100)
        measure(plan, Figures(), start, rounds=1, progress=lambda *_: None)
    assert opened == [DECODE, DECODE, LARGE]


def test_copying_takes_the_better_of_plain_and_lookup() -> None:
    figures, log = run(COPY)
    able = {side.name for side in SIDES if side.looks_up}
    assert able == {name for what, name in log if what == "lookup"} and len(able) < len(SIDES)
    assert {side.name for side in SIDES} == {name for what, name in log if what == "ask"}
    for side in SIDES:  # the stand-in is twice as fast when it may look up
        expected = 1000 / SLOWNESS[side.name] * (2 if side.looks_up else 1)
        assert figures.values["copy"][side.name] == pytest.approx([expected] * 3)


def test_no_prompt_is_copied_twice_in_a_round() -> None:
    seen: list[int] = []

    class Noting(Fake):
        def generate(self, prompts: Any, num_new: int, *, lookup: bool = False) -> Any:
            seen.append(len(prompts[0]))
            return super().generate(prompts, num_new, lookup=lookup)

    plan = Plan(sides=SIDES[:1], works=[COPY], vocabulary=100, copied=COPIED)
    measure(plan, Figures(), lambda side, _: Noting(side, []), rounds=2, progress=lambda *_: None)
    assert sorted(seen) == [len(prompt) for prompt in COPIED]


def test_prompts_are_new_in_every_call() -> None:
    call = BATCH.calls[0]
    first = [tuple(p) for seed in "abc" for p in prompts(call, vocabulary=49152, seed=seed)]
    assert prompts(call, vocabulary=90, seed="a") == prompts(call, vocabulary=90, seed="a")
    assert {len(p) for p in first} == {128} and len({p[0] for p in first}) > 40
    assert all(0 < token < 90 for p in prompts(call, vocabulary=90, seed="a") for token in p)
