"""Paths through a graph of vertices when there is no text to spell: what one-pass decoders choose.

A path starts at the first vertex, goes to later ones and ends at the last. What a step to a vertex
scores is given: the link's log-probability, or that and the token's there. `step_by_step` takes the
best step each time (greedy and lookahead of DA-Transformer, arXiv 2205.07459), `draw_path` draws
it, and `best_of_every_length` finds by dynamic programming, for each number of steps, the path of
the highest sum (Viterbi and Joint-Viterbi decoding, arXiv 2210.05193).

Not done: beam search over paths that spell the same text.

Shape suffixes: L vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def step_by_step(scores_LL: torch.Tensor) -> list[int]:
    """The vertices behind the first, always by the best step. Equal ones: the nearest."""
    best = scores_LL.argmax(dim=1).tolist()
    return _follow(len(best), best.__getitem__)


def draw_path(
    links_LL: torch.Tensor, temperature: float, uniform: Callable[[int], float]
) -> list[int]:
    """Every step drawn from its link's probabilities at a temperature above 0; `uniform` gives a
    number in [0, 1) for the step from a vertex."""

    def step(vertex: int) -> int:
        shares_L = (links_LL[vertex].double() / temperature).softmax(dim=0).cumsum(dim=0)
        # The first share above the number; rounding may leave the last one a little under 1.
        drawn = int((shares_L <= uniform(vertex) * shares_L[-1]).sum())
        return drawn

    return _follow(len(links_LL), step)


def best_of_every_length(scores_LL: torch.Tensor) -> list[tuple[float, list[int]]]:
    """For 1, 2, ... steps the best path's summed score and its vertices behind the first."""
    import torch

    length = len(scores_LL)
    last, reach_L = length - 1, torch.full((length,), -torch.inf)
    reach_L[0] = 0.0
    origins: list[list[int]] = []
    found = []
    for num_steps in range(1, length):
        reach_L, origin_L = (reach_L[:, None] + scores_LL).max(dim=0)
        origins.append(origin_L.tolist())
        path = [last]
        for origin in origins[:0:-1]:
            path.append(origin[path[-1]])
        assert len(path) == num_steps, "a vertex a step"
        found.append((float(reach_L[last]), path[::-1]))
    return found


def _follow(length: int, step: Callable[[int], int]) -> list[int]:
    path, vertex = [], 0
    while vertex < length - 1:
        vertex = step(vertex)
        path.append(vertex)
    return path
