"""Draft lengths by simulation: near the best fixed length, never much slower than no drafts."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from anyorder.sampling.draft_length import DraftLength

COSTS = [(0.02, 0.0), (0.1, 0.0), (0.05, 0.1), (0.25, 0.0)]
"""Plain passes that a proposal adds to the check, and that making it takes."""
LONGEST = 16


def simulate(
    chance: Callable[[int, int], float],
    num_tokens: int,
    *,
    check: float,
    draft: float = 0.0,
    num_grades: int = 1,
    seed: int = 0,
) -> tuple[float, list[int]]:
    """Time over that of plain decoding, and the lengths chosen. A proposal is accepted with
    `chance(position, grade)`; grades come at random."""
    rng = random.Random(seed)
    lengths = DraftLength(LONGEST, lambda grade: 0.75)
    seconds, done, chosen = 0.0, 0, []
    while done < num_tokens:
        grade = rng.randrange(num_grades)
        length = lengths.choose(
            grade,
            plain=2.0,
            check=lambda k: 2.0 * (1 + check * k),
            draft=lambda k: 2.0 * draft * k,
        )
        accepted, likely = 0, chance(done, grade)
        while accepted < length and rng.random() < likely:
            accepted += 1
        lengths.record(grade, length, accepted)
        seconds += 1 + (check + draft) * length
        done += accepted + 1
        chosen.append(length)
    return seconds / done, chosen


def best(chance: float, each: float) -> tuple[float, int]:
    """Least time of a fixed length over plain decoding, and that length."""
    return min(
        ((1 + each * k) / sum(chance**n for n in range(k + 1)), k) for k in range(LONGEST + 1)
    )


@pytest.mark.parametrize(("check", "draft"), COSTS)
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98])
def test_finds_the_best_length(chance: float, check: float, draft: float) -> None:
    runs = [simulate(lambda *_: chance, 2000, check=check, draft=draft, seed=s) for s in range(4)]
    least, length = best(chance, check + draft)
    assert sum(time for time, _ in runs) / 4 < 1.12 * least
    mean = sum(sum(chosen) / len(chosen) for _, chosen in runs) / 4
    assert 0.4 * length - 1.2 < mean < 1.5 * length + 1.7


@pytest.mark.parametrize("num_grades", [1, 8])
@pytest.mark.parametrize("each", [0.0, 0.01, 0.05, 0.1, 0.25, 0.6, 3.0])
@pytest.mark.parametrize("num_tokens", [100, 200, 10_000])
def test_costs_little_where_no_draft_helps(num_tokens: int, each: float, num_grades: int) -> None:
    """A trial of two tokens at 1.5 passes and all other prices: below 3%, for short texts too."""
    time, chosen = simulate(lambda *_: 0.0, num_tokens, check=each, num_grades=num_grades)
    assert time < 1.021
    if num_tokens == 10_000:
        assert time < 1.011
    if each >= 0.1 and num_tokens > 100:
        assert sum(map(bool, chosen)) < 0.2 * len(chosen)


@pytest.mark.parametrize("check", [0.02, 0.1, 0.25])
def test_follows_bursts(check: float) -> None:
    """A hundred tokens that drafts never get right, a hundred that they mostly do, and so on."""
    runs = [
        simulate(lambda done, _: 0.95 * (done // 100 % 2), 4000, check=check, seed=seed)[0]
        for seed in range(4)
    ]
    ideal = (1 + best(0.95, check)[0]) / 2
    assert sum(runs) / 4 < 1.2 * ideal


@pytest.mark.parametrize("check", [0.02, 0.1, 0.25])
def test_believes_a_trial_that_worked(check: float) -> None:
    """Nothing for a long time, then everything: a few drafts later they are long."""
    lengths = DraftLength(LONGEST, lambda grade: 0.75)
    options = {"plain": 1.0, "check": lambda k: 1 + check * k, "draft": lambda k: 0.0}
    for _ in range(300):
        lengths.record(0, lengths.choose(0, **options), 0)  # type: ignore[arg-type]
    assert lengths.first(0) < 0.1
    drafts = []
    for _ in range(200):
        length = lengths.choose(0, **options)  # type: ignore[arg-type]
        lengths.record(0, length, length)
        drafts += [length] if length else []
    assert drafts[0] <= 2 and drafts[7] >= 10, drafts[:8]


def test_grades_are_told_apart() -> None:
    """One grade always hits, the other never does: the first is drafted for at length."""
    lengths = DraftLength(LONGEST, lambda grade: 0.75)
    options = {"plain": 1.0, "check": lambda k: 1 + 0.1 * k, "draft": lambda k: 0.0}
    for _ in range(40):
        for grade, hits in ((0, False), (1, True)):
            length = lengths.choose(grade, **options)  # type: ignore[arg-type]
            lengths.record(grade, length, length * hits)
    assert lengths.first(0) < 0.1 and lengths.first(1) > 0.9
    assert lengths.choose(1, **options) == LONGEST  # type: ignore[arg-type]
    assert lengths.choose(0, **options) <= 2  # type: ignore[arg-type]


def test_an_unknown_plain_pass_is_made_first_and_an_unknown_check_is_tried() -> None:
    lengths = DraftLength(8, lambda grade: 0.75)
    assert lengths.choose(0, plain=None, check=lambda k: None, draft=lambda k: 0.0) == 0
    assert lengths.num_plain == 0, "not because none would have paid"
    assert lengths.choose(0, plain=1.0, check=lambda k: None, draft=lambda k: 0.0) == 8
    assert lengths.num_steps == 2


def test_an_impossible_draft_is_never_tried() -> None:
    lengths = DraftLength(8, lambda grade: 0.75)
    for _ in range(500):
        assert lengths.choose(0, plain=1.0, check=lambda k: 1.0, draft=lambda k: inf) == 0
    assert lengths.num_plain == lengths.num_steps == 500


def test_only_what_was_proposed_counts() -> None:
    """The drafter may have had less than it was asked for, or nothing."""
    lengths = DraftLength(8, lambda grade: 0.75)
    options = {"plain": 1.0, "check": lambda k: 1 + 0.05 * k, "draft": lambda k: 0.0}
    assert lengths.choose(0, **options) > 1  # type: ignore[arg-type]
    before = lengths.first(0)
    lengths.record(0, 0, 0)
    assert lengths.first(0) == before
    lengths.record(0, 1, 1)
    assert lengths.first(0) > before
    while not lengths._is_trial:
        lengths.record(0, lengths.choose(0, **options), 0)  # type: ignore[arg-type]
    before = lengths.first(0)
    lengths.record(0, 0, 0)
    assert lengths.first(0) == before, "a trial that came to nothing says nothing"
    lengths.choose(0, **options)  # type: ignore[arg-type]
    lengths.record(0, 1, 0)
    assert lengths.first(0) < before


@pytest.mark.parametrize("longest", [1, 2, 7, 64])
def test_stays_within_the_limit_and_reaches_it(longest: int) -> None:
    lengths, seen = DraftLength(longest, lambda grade: 0.75), 0
    for _ in range(60):
        length = lengths.choose(0, plain=1.0, check=lambda k: 1.0, draft=lambda k: 0.0)
        lengths.record(0, length, length)
        seen = max(seen, length)
    assert seen == longest


def test_a_grade_that_promises_little_is_not_tried_where_passes_are_dear() -> None:
    lengths = DraftLength(16, lambda grade: 1 - 0.7 / grade)

    def choose(grade: int, each: float) -> int:
        return lengths.choose(grade, plain=1.0, check=lambda k: 1 + each * k, draft=lambda k: 0.0)

    assert [choose(1, 0.5) for _ in range(300)] == [0] * 300, "nothing was tried: no trials"
    assert choose(8, 0.5) > 1, "so that all credit is left for one that promises much"
    assert choose(1, 0.01) > 0


def test_everybody_waits_for_a_longer_pass() -> None:
    """What pays for a text alone does not where seven others would wait for it."""
    options: dict[str, Any] = {
        "plain": 1.0,
        "check": lambda k: 1 + 0.05 * k,
        "draft": lambda k: 0.0,
    }
    alone, together = (DraftLength(16, lambda grade: 0.75) for _ in range(2))
    assert alone.choose(0, **options) > 2
    lengths = [together.choose(0, **options, others=7) for _ in range(10)]
    assert max(lengths) <= 2, lengths
    free = {**options, "check": lambda k: 1 + 0.0001 * k}
    assert together.choose(0, **free, others=7) > 2, "a pass that is hardly longer"
    chances = [0.6, 0.5, 0.4, 0.3]
    kept = [
        alone.worth_checking(chances, check=options["check"], drafting=1.0, others=others)
        for others in (0, 30)
    ]
    assert len(kept[0]) == 4 and len(kept[1]) < 4
