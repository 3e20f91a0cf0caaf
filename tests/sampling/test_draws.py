"""Draws: a pure function of seed and key, uniform, independent, and the inverse of the CDF."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from anyorder.sampling.draws import draw, draw_on_device, uniform

LARGEST = 1 - 2.0**-53
CRITICAL = {6: 22.46, 9: 27.88, 99: 148.2}
"""0.999 quantiles of chi-square by degrees of freedom."""


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniform_is_pinned():
    """The same seed gives the same text in every version, so these numbers may never change."""
    assert uniform(0) == 0.09686719122320409
    assert uniform(1, 2, 3) == 0.7069603535111167
    assert uniform(2**63 - 1, -1, 0) == 0.550824739745999


def test_keys_are_told_apart():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (2**40,)]
    numbers = {uniform(seed, *key) for seed in (0, 1) for key in keys}
    assert len(numbers) == 2 * len(keys)


def test_uniform_is_uniform():
    numbers = np.array([uniform(seed, 7) for seed in range(10_000)])
    assert numbers.min() >= 0 and numbers.max() <= LARGEST
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert chi_square(counts, np.full(100, 100.0)) < CRITICAL[99]


def test_draws_have_the_exact_distribution():
    weights = np.array([0.1, 0.0, 3.0, 1.0, 0.5, 0.0, 2.0, 0.4, 1.0])
    draws = [draw(weights, uniform(seed, 3)) for seed in range(20_000)]
    counts = np.bincount(draws, minlength=9)
    assert counts[1] == counts[5] == 0
    possible = weights > 0
    expected = 20_000 * weights / weights.sum()
    assert chi_square(counts[possible], expected[possible]) < CRITICAL[6]


@pytest.mark.parametrize("pairs", ["positions", "seeds", "choices"])
def test_neighbouring_draws_are_independent(pairs):
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    counts = np.zeros((4, 4))
    for count in range(16_000):
        first, second = {
            "positions": ((5, 0, 2 * count), (5, 0, 2 * count + 1)),
            "seeds": ((2 * count, 0, 0), (2 * count + 1, 0, 0)),
            "choices": ((5, 0, count), (5, 1, count)),
        }[pairs]
        counts[draw(weights, uniform(*first)), draw(weights, uniform(*second))] += 1
    expected = 16_000 * np.outer(weights, weights) / 100
    # 15 degrees of freedom, as the marginals are known; 0.999 quantile.
    assert chi_square(counts, expected) < 37.70


def exact(weights, number):
    """The definition, in exact arithmetic."""
    target = Fraction(number) * sum(map(Fraction, weights))
    running = Fraction(0)
    for index, weight in enumerate(weights):
        running += Fraction(weight)
        if running > target:
            return index
    raise AssertionError


@pytest.mark.parametrize("size", [1, 5, 255, 256, 257, 1000])
def test_draw_inverts_the_running_sum(size):
    generator = np.random.default_rng(size)
    for number in (0.0, 0.25, *generator.random(20), LARGEST):
        weights = generator.random(size) * (generator.random(size) < 0.5)
        weights[generator.integers(size)] = 1.0
        index = draw(weights, number)
        assert weights[index] > 0
        assert index == exact(weights, number)


@pytest.mark.parametrize("size", [3, 256, 300, 1000])
def test_the_largest_number_never_draws_the_impossible(size):
    """Rounding may put the target at the very end of the running sum."""
    for last in range(0, size, 7):
        weights = np.zeros(size)
        weights[: last + 1] = 0.1
        for number in (LARGEST, 1.0):
            assert draw(weights, number) <= last
            scores = torch.from_numpy(weights).log()[None]
            assert int(draw_on_device(scores, torch.tensor([number]).double())) <= last


def test_devices_draw_the_same():
    scores = torch.randn(50, 700) * 3
    scores[torch.rand(50, 700) < 0.3] = -torch.inf
    numbers = torch.tensor([uniform(4, row) for row in range(50)], dtype=torch.float64)
    expected = [
        draw(np.exp(line.astype(np.float64)), float(number))
        for line, number in zip(scores.numpy(), numbers, strict=True)
    ]
    assert draw_on_device(scores, numbers).tolist() == expected
