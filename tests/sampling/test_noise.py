"""Levels of noise: their range and spread, and weights that undo the schedule."""

from __future__ import annotations

import pytest
import torch

from anyorder.sampling.noise import Schedule, draw_levels

SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "square")


def starts(*lengths: int, rows: int = 1) -> torch.Tensor:
    row = [place == 0 for length in lengths for place in range(length)]
    return torch.tensor([row] * rows)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_belong_to_units_and_lie_in_range(schedule: Schedule) -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        levels, weights = draw_levels(
            starts(3, 2, 4, rows=2), schedule=schedule, lowest=0.1, highest=0.7, rng=rng
        )
        assert levels.shape == weights.shape == (2, 9)
        assert levels.min() >= 0.1 and levels.max() <= 0.7
        for part in (slice(0, 3), slice(3, 5), slice(5, 9)):
            assert (levels[:, part] == levels[:, part][:, :1]).all()
            assert (weights[:, part] == weights[:, part][:, :1]).all()
        assert len(levels.unique()) == 6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weighted_mean_is_that_of_uniform_levels(schedule: Schedule) -> None:
    levels, weights = draw_levels(
        torch.ones(1, 100_000, dtype=torch.bool),
        schedule=schedule,
        lowest=0.2,
        highest=0.9,
        rng=torch.Generator().manual_seed(1),
    )
    for power in range(4):
        exact = (0.9 ** (power + 1) - 0.2 ** (power + 1)) / (power + 1) / 0.7
        assert float((weights * levels**power).mean()) == pytest.approx(exact, rel=1e-4)


def test_each_unit_alone_is_uniform_and_together_they_are_evenly_spread() -> None:
    rng = torch.Generator().manual_seed(2)
    draws = []
    for _ in range(2000):
        levels, _ = draw_levels(
            starts(1, 1, 1, 1), schedule="linear", lowest=0.0, highest=1.0, rng=rng
        )
        gaps = levels[0].sort().values.diff()
        torch.testing.assert_close(gaps, torch.full((3,), 0.25))
        draws.append(levels[0])
    found = torch.stack(draws).sort(0).values
    ideal = (torch.arange(2000) + 0.5) / 2000
    # Kolmogorov's statistic; 1.95 / sqrt(2000) is passed once in a thousand.
    assert float((found - ideal[:, None]).abs().max()) < 1.95 / 2000**0.5


def test_one_level_only() -> None:
    levels, weights = draw_levels(
        starts(2, 2), schedule="linear", lowest=1.0, highest=1.0, rng=torch.Generator()
    )
    assert (levels == 1).all() and (weights == 1).all()
