"""Costs of passes: medians by size, linear between and beyond, with everybody else's tokens."""

from __future__ import annotations

import pytest

from anyorder.engine.costs import PassCosts


def measured(*passes: tuple[int, float], role: str = "target") -> PassCosts:
    costs = PassCosts()
    for num_tokens, seconds in passes:
        costs.record(role, None, {"me": num_tokens}, seconds)
    return costs


def seconds(costs: PassCosts, num_tokens: int, **key: object) -> float | None:
    return costs.seconds(
        str(key.get("role", "target")), key.get("layers"), num_tokens, run=key.get("run", "me")
    )  # type: ignore[arg-type]


def test_nothing_is_known_before_two_sizes_were_seen() -> None:
    assert seconds(PassCosts(), 1) is None
    costs = measured((1, 3.0))
    assert seconds(costs, 1) == 3.0
    assert seconds(costs, 2) is None


def test_medians_of_the_last_passes() -> None:
    costs = measured(*[(1, float(s)) for s in (9, 1, 100, 2, 3)])
    assert seconds(costs, 1) == 3.0, "one slow pass does not matter"
    for _ in range(9):
        costs.record("target", None, {"me": 1}, 50.0)
    assert seconds(costs, 1) == 50.0, "old passes are forgotten"


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, 10.0), (3, 12.0), (5, 14.0), (6, 14.5), (9, 16.0), (13, 18.0)],
)
def test_linear_between_and_beyond(num_tokens: int, expected: float) -> None:
    costs = measured((9, 16.0), (1, 10.0), (5, 14.0))
    assert seconds(costs, num_tokens) == pytest.approx(expected)


def test_never_below_what_was_measured_nearby() -> None:
    """A larger pass that happened to be faster must not make a long draft look free."""
    costs = measured((4, 10.0), (5, 9.0))
    assert seconds(costs, 15) == 9.0
    assert seconds(costs, 1) == pytest.approx(13.0)
    rising = measured((4, 1.0), (5, 9.0))
    assert seconds(rising, 1) == 1.0


def test_company_counts() -> None:
    """Of the others what they had in the latest pass, of this run what it asks for."""
    costs = PassCosts()
    for size in range(1, 16):
        costs.record("target", None, {"me": size}, float(size))
    costs.record("target", None, {"me": 3, "you": 2, "they": 4}, 9.0)
    assert seconds(costs, 1) == 7.0
    assert seconds(costs, 5) == 11.0
    assert seconds(costs, 1, run="somebody new") == 10.0
    costs.record("target", None, {"me": 3}, 3.0)
    assert seconds(costs, 5) == 5.0


def test_models_and_depths_are_kept_apart() -> None:
    costs = measured((1, 1.0))
    costs.record("draft", None, {"me": 1}, 2.0)
    costs.record("target", 3, {"me": 1, "you": 1}, 4.0)
    assert seconds(costs, 1) == 1.0
    assert seconds(costs, 1, role="draft") == 2.0
    assert seconds(costs, 1, layers=3) == 4.0, "you are there, in passes of three layers"
    assert seconds(costs, 1, layers=2) is None


def test_large_passes_say_nothing_but_who_was_there() -> None:
    costs = measured((1, 1.0), (2, 2.0))
    costs.record("target", None, {"me": 1, "prompt": 600}, 100.0)
    assert seconds(costs, 1) == 601.0, "extended from what is known of small ones"
    costs.record("target", None, {"me": 1}, 1.0)
    assert seconds(costs, 3) == 3.0


def test_similar_large_sizes_count_as_one() -> None:
    costs = measured((8, 1.0), (100, 5.0))
    assert seconds(costs, 103) == seconds(costs, 100) == 5.0
    assert seconds(costs, 9) != seconds(costs, 8) == 1.0
