"""Paths through graphs against all paths written out, and draws against their probabilities."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch

from anyorder.sampling.paths import best_of_every_length, draw_path, step_by_step

SIZE = 6


def links(seed: int, size: int = SIZE) -> torch.Tensor:
    """Distributions over the vertices behind."""
    scores = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) * 2
    closed = torch.ones(size, size, dtype=torch.bool).tril()
    lowest = torch.finfo(torch.float32).min
    return scores.masked_fill(closed, lowest).log_softmax(1).masked_fill(closed, -torch.inf)


def all_paths(scores: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Every path's sum."""
    last = len(scores) - 1
    return {
        (*middle, last): sum(float(scores[a, b]) for a, b in itertools.pairwise((0, *middle, last)))
        for count in range(last)
        for middle in itertools.combinations(range(1, last), count)
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_every_length_is_the_best_of_all_paths(seed: int) -> None:
    scores, found = links(seed), best_of_every_length(links(seed))
    assert len(found) == SIZE - 1
    for count, (score, path) in enumerate(found, 1):
        sums = {path: s for path, s in all_paths(scores).items() if len(path) == count}
        assert score == pytest.approx(max(sums.values()), rel=1e-5)
        assert sums[tuple(path)] == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_step_by_step_takes_the_best_step(seed: int) -> None:
    scores = links(seed)
    path = step_by_step(scores)
    assert path[-1] == SIZE - 1 and path == sorted(set(path))
    for before, here in itertools.pairwise((0, *path)):
        assert float(scores[before, here]) == float(scores[before].max())


def test_it_can_be_worse_than_the_best_path() -> None:
    worse = 0
    for seed in range(20):
        scores = links(seed, 9)
        worse += all_paths(scores)[tuple(step_by_step(scores))] < max(all_paths(scores).values())
    assert worse


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_drawn_paths_have_their_probabilities(temperature: float) -> None:
    scores, rng, size = links(1, 4), random.Random(0), 4000
    drawn = Counter(
        tuple(draw_path(scores, temperature, lambda vertex: rng.random())) for _ in range(size)
    )
    tempered = (scores / temperature).log_softmax(1)
    statistic = 0.0
    for path, logprob in all_paths(tempered).items():
        expected = size * math.exp(logprob)
        statistic += (drawn[path] - expected) ** 2 / expected
    assert statistic < 16.3  # 3 degrees of freedom, p = 0.001


def test_no_step_leads_back_whatever_is_drawn() -> None:
    for number in (0.0, 1 - 2**-53):
        path = draw_path(links(0), 1.0, lambda vertex, number=number: number)
        assert path == sorted(set(path)) and path[-1] == SIZE - 1


def test_two_vertices_have_one_path() -> None:
    scores = links(0, 2)
    assert step_by_step(scores) == draw_path(scores, 1.0, lambda vertex: 0.5) == [1]
    assert best_of_every_length(scores) == [(0.0, [1])]
