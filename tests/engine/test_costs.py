"""Costs of passes: low quartiles by size, linear between and beyond, with others' tokens."""

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


def test_late_passes_do_not_matter_and_old_ones_are_forgotten() -> None:
    costs = measured(*[(1, float(s)) for s in (9, 1, 100, 2, 3)])
    assert seconds(costs, 1) == 2.0
    for _ in range(9):
        costs.record("target", None, {"me": 1}, 50.0)
    assert seconds(costs, 1) == 50.0


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, 10.0), (3, 12.0), (5, 14.0), (6, 14.5), (9, 16.0), (13, 18.0)],
)
def test_linear_between_and_beyond(num_tokens: int, expected: float) -> None:
    costs = measured(*[(9, 16.0), (1, 10.0), (5, 14.0)] * 3)
    assert seconds(costs, num_tokens) == pytest.approx(expected)


def test_a_larger_pass_is_never_cheaper() -> None:
    """So a size that was late whenever it was tried is corrected by larger ones."""
    costs = measured(*[(4, 10.0), (5, 9.0)] * 3)
    assert [seconds(costs, size) for size in (1, 4, 5, 15)] == [9.0] * 4
    rising = measured((4, 1.0), (5, 9.0))
    assert seconds(rising, 1) == 1.0


def test_a_size_seen_once_is_doubted_where_its_neighbours_are_cheap() -> None:
    costs = measured(*[(1, 1.0)] * 9, (6, 50.0), (8, 1.7))
    assert seconds(costs, 6) == 1.7, "no dearer than a larger one"
    late = measured(*[(1, 1.0)] * 9, (4, 1.3), (8, 50.0))
    assert seconds(late, 8) == pytest.approx(1.7)
    assert seconds(costs, 4) == pytest.approx(1.0 + 0.7 * 3 / 5)
    dearer = measured(*[(1, 1.0)] * 9, (160, 6.0), (8, 1.75))
    assert seconds(dearer, 8) == 1.75, "a size that costs somewhat more is believed at once"
    seldom = measured(*[(1, 1.0)] * 9, (8, 1.7), (6, 1.1))
    assert seconds(seldom, 6) == 1.1, "but believed where it is the cheaper one"


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


def test_others_of_the_latest_pass_are_counted() -> None:
    costs = PassCosts()
    assert costs.num_others("target", None, run="me") == 0
    costs.record("target", None, {"me": 1, "you": 4, "she": 2}, 1.0)
    assert costs.num_others("target", None, run="me") == 2
    assert costs.num_others("target", None, run="late") == 3
    assert costs.num_others("draft", None, run="me") == 0
