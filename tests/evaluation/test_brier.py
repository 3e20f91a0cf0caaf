"""The estimator against its closed form, where everything can be enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anyorder.core.errors import UserError
from anyorder.evaluation.brier import brier

MODEL = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
"""p(first token), and p(second token), which does not depend on the first."""
TEXT = np.array([[0.6, 0.2, 0.2], [0.3, 0.3, 0.4]])
"""The distribution of what does follow."""


def closed_form(length: int, model: np.ndarray = MODEL, text: np.ndarray = TEXT) -> float:
    """The mean of 2 p(y) - sum of p^2 over n-grams."""
    total = 0.0
    for gram in itertools.product(range(3), repeat=length):
        p = np.prod([model[place, token] for place, token in enumerate(gram)])
        y = np.prod([text[place, token] for place, token in enumerate(gram)])
        total += 2 * p * y - p * p
    return total


def draws(table: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(3, count, p=row) for row in table], axis=1)


def test_the_estimate_is_the_closed_form() -> None:
    count = 200_000
    found = brier(draws(MODEL, count, 0), draws(MODEL, count, 1), draws(TEXT, count, 2))
    assert found.num_places == count
    for length, (score, error) in enumerate(
        zip(found.scores, found.standard_errors, strict=True), 1
    ):
        expected = closed_form(length)
        assert 0 < error < 0.01 * (1 + expected)
        assert abs(score - expected) < 4 * error
    assert found.brier_lm == pytest.approx(100 * (found.scores[0] * found.scores[1]) ** 0.5)


def test_every_pair_of_draws_by_hand() -> None:
    first, second, true = (
        [[1, 2], [1, 2], [3, 3]],
        [[1, 2], [0, 2], [3, 1]],
        [[1, 2], [1, 2], [0, 3]],
    )
    # Both right: 1 + 1 - 1. One right: 1. Both wrong alike: -1.
    found = brier(first, second, true)
    assert found.scores == pytest.approx(((1 + 1 - 1) / 3, (1 + 1 + 0) / 3))
    errors = [np.std([1, 1, -1], ddof=1) / 3**0.5, np.std([1, 1, 0], ddof=1) / 3**0.5]
    assert found.standard_errors == pytest.approx(errors)


def test_the_truth_scores_best() -> None:
    best = closed_form(2, model=TEXT)
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = rng.dirichlet(np.ones(3), size=2)
        assert closed_form(2, model=other) <= best


def test_scores_below_zero_count_as_zero() -> None:
    found = brier([[1], [1]], [[1], [1]], [[0], [0]])
    assert found.scores == (-1.0,) and found.brier_lm == 0.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"of equal lengths; got \[2, 2\], \[2, 1\] and \[2, 2\]"):
        brier([[1, 2], [3, 4]], [[1], [2]], [[1, 2], [3, 4]])
    with pytest.raises(UserError, match="at least 2 places"):
        brier([[1, 2]], [[1, 2]], [[1, 2]])
