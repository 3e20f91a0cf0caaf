"""Levels of noise: their range and spread, and weights that undo the schedule."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from anyorder.sampling.noise import MaskSchedule, Schedule, draw_levels, draw_masks

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


# ------------------------------------------------------------------------------------------ masks
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_follow_levels(schedule: Schedule) -> None:
    candidates = torch.rand(2, 3000, generator=torch.Generator().manual_seed(0)) < 0.8
    units = starts(1000, 2000, rows=2)
    limits = {"lowest": 0.1, "highest": 0.9}
    levels, weights = draw_levels(
        units, schedule=schedule, **limits, rng=torch.Generator().manual_seed(3)
    )
    masked, scale = draw_masks(
        units, candidates, schedule=schedule, **limits, rng=torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(scale, weights / levels)
    assert not (masked & ~candidates).any()
    for row, part in itertools.product((0, 1), (slice(0, 1000), slice(1000, 3000))):
        share = masked[row, part][candidates[row, part]].double().mean()
        level = float(levels[row, part][0])
        assert float(share) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 800))


def counted(
    units: torch.Tensor, candidates: torch.Tensor, rng: torch.Generator, **limits: float
) -> tuple[torch.Tensor, torch.Tensor]:
    given = {"lowest": 0.0, "highest": 1.0} | limits
    return draw_masks(units, candidates, schedule="counts", rng=rng, **given)  # type: ignore[arg-type]


def test_every_number_and_every_choice_of_masks_is_as_likely() -> None:
    # Units of 3 candidates among 5 tokens, of 1, and of none.
    units = starts(5, 2, 1)
    candidates = torch.tensor([[True, False, True, True, False, False, True, False]])
    rng = torch.Generator().manual_seed(0)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        masked, weights = counted(units, candidates, rng)
        assert not (masked & ~candidates).any() and masked[0, 6]
        places = tuple(masked[0, :5].nonzero()[:, 0].tolist())
        assert weights[0, :5].tolist() == pytest.approx([3 / len(places)] * 5)
        assert weights[0, 6] == 1
        seen[places] += 1
    choices = [chosen for k in (1, 2, 3) for chosen in itertools.combinations((0, 2, 3), k)]
    assert set(seen) == set(choices)
    for chosen in choices:
        chance = 1 / 3 / math.comb(3, len(chosen))
        error = math.sqrt(chance * (1 - chance) / 6000)
        assert seen[chosen] / 6000 == pytest.approx(chance, abs=4 * error), chosen


def test_numbers_of_masks_of_many_units_are_spread_evenly() -> None:
    units, candidates = starts(*[4] * 10, rows=10), torch.ones(10, 40, dtype=torch.bool)
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        masked, _ = counted(units, candidates, rng)
        assert Counter(masked.view(100, 4).sum(1).tolist()) == {1: 25, 2: 25, 3: 25, 4: 25}


def test_shares_of_masks_can_be_limited() -> None:
    units, candidates = starts(*[10] * 60), torch.ones(1, 600, dtype=torch.bool)
    rng = torch.Generator().manual_seed(2)

    def numbers(lowest: float, highest: float) -> dict[int, int]:
        masked, _ = counted(units, candidates, rng, lowest=lowest, highest=highest)
        return dict(Counter(masked.view(60, 10).sum(1).tolist()))

    assert numbers(0.3, 0.8) == {k: 10 for k in range(3, 9)}
    assert numbers(1.0, 1.0) == {10: 60}
    # No whole number of 10 lies between: the next above.
    assert numbers(0.11, 0.19) == {2: 60}


@pytest.mark.parametrize(("size", "at_most"), [(4, 0.5), (64, 1.0)])
def test_counts_estimate_what_levels_do_and_scatter_less(size: int, at_most: float) -> None:
    """The cost of a mask is made up: the share of masks in its unit, to which the mean of the bound
    is known: E of (size / k) * k * (k / size) for k from 1 to size, each as likely."""
    units, candidates = starts(*[size] * 50), torch.ones(1, 50 * size, dtype=torch.bool)

    def estimates(schedule: MaskSchedule) -> torch.Tensor:
        rng = torch.Generator().manual_seed(4)
        found = []
        for _ in range(400):
            masked, weights = draw_masks(
                units, candidates, schedule=schedule, lowest=1e-3, highest=1.0, rng=rng
            )
            shares = masked.view(50, size).double().mean(1, keepdim=True).expand(50, size)
            found.append((shares.reshape(1, -1) * weights)[masked].sum() / 50)
        return torch.stack(found)

    exact = (size + 1) / 2
    by_count, by_level = estimates("counts"), estimates("linear")
    for found in (by_count, by_level):
        assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / 20 + 2e-3)
    assert float(by_count.std()) < at_most * float(by_level.std())
