"""Longest common subsequences against trying all sets of tokens."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from anyorder.sampling.subsequence import common_subsequence


def by_trying(text: list[int], goal: list[int]) -> tuple[int, ...]:
    """Of the largest sets of places whose tokens stand in the goal in their order, the one whose
    last place is earliest, then the one before it, and so on."""
    for size in range(len(text), 0, -1):
        found = []
        for places in itertools.combinations(range(len(text)), size):
            rest = iter(goal)
            if all(text[place] in rest for place in places):
                found.append(places[::-1])
        if found:
            return min(found)[::-1]
    return ()


def drawn(seed: int, length: int, symbols: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(symbols) for _ in range(length)]


@pytest.mark.parametrize("symbols", [2, 3, 6])
def test_every_set_of_tokens_was_tried(symbols: int) -> None:
    texts = [drawn(seed, 8, symbols) for seed in range(40)]
    goals = [drawn(100 + seed, 8, symbols) for seed in range(40)]
    one = torch.zeros(40, 8, dtype=torch.int64)
    stays = common_subsequence(torch.tensor(texts), torch.tensor(goals), one)
    assert 0 < int(stays.sum()) < stays.numel()
    for row, text, goal in zip(stays, texts, goals, strict=True):
        assert tuple(row.nonzero()[:, 0].tolist()) == by_trying(text, goal)


def test_groups_are_texts_of_their_own() -> None:
    parts = [(drawn(seed, n, 3), drawn(50 + seed, n, 3)) for seed, n in enumerate((5, 1, 7))]
    groups = torch.tensor([[4] * 5 + [6] + [9] * 7])
    text, goal = (torch.tensor([[token for part in parts for token in part[i]]]) for i in (0, 1))
    expected, first = [], 0
    for own, wanted in parts:
        expected += [first + place for place in by_trying(own, wanted)]
        first += len(own)
    stays = common_subsequence(text, goal, groups)[0]
    assert stays.nonzero()[:, 0].tolist() == expected
    assert common_subsequence(text, text, groups).all()
    whole = common_subsequence(text, goal, torch.zeros_like(groups))[0]
    assert int(whole.sum()) > len(expected)
