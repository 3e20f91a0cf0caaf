"""Networks whose predictions come from an enumerated joint distribution instead of weights."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.method import Abilities
from anyorder.model.loaded import LoadedModel

START = 3
MASK = 4
VOCABULARY = 5
"""Symbols 0 to 2, the prompt's only token, and the mask."""
LENGTH = 3
Predict = Callable[[tuple[int, ...], int], torch.Tensor]
"""From what stands on the canvas, in the network's pass of this number, to log-probabilities
[LENGTH, 3] of its places."""


class Enumerated:
    """Implements `core.batch.Network` by a function of each canvas."""

    cache_shapes = ((1, 1),)
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, predict: Predict, *, num_symbols: int = VOCABULARY) -> None:
        self._predict = predict
        self._num_symbols = num_symbols
        self._num_passes = 0

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        """Rows of scores."""
        rows = torch.full((len(batch.tokens_N), self._num_symbols), -torch.inf)
        for group in batch.groups:
            tokens = batch.tokens_N[group.rows].view(group.num_requests, group.num_queries)
            for order, (start, *canvas) in enumerate(tokens.tolist()):
                first = group.first_row + order * group.num_queries
                assert start == START % self._num_symbols and len(canvas) == LENGTH
                found = self._predict(tuple(canvas), self._num_passes)
                rows[first + 1 : first + 1 + LENGTH, : found.shape[1]] = found
        self._num_passes += 1
        return rows

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """What `hidden` made."""
        return hidden_MW

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """See Network."""
        raise AssertionError("no heads")


def enumerated_model(predict: Predict, *, masks: bool = True) -> LoadedModel:
    """A two-way model of canvases; without masks its vocabulary is the symbols alone."""
    size = VOCABULARY if masks else 3
    abilities = Abilities(
        name="enumerated",
        vocabulary_size=size,
        context_length=16,
        mask_token=MASK if masks else None,
        attention=frozenset({"bidirectional"}),
    )
    return LoadedModel(network=Enumerated(predict, num_symbols=size), abilities=abilities)  # type: ignore[arg-type]


def joint(seed: int = 0, *, spread: float = 1.5) -> torch.Tensor:
    """A distribution over texts [3, 3, 3] whose places depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((3,) * LENGTH, generator=generator, dtype=torch.float64) * spread
    return scores.flatten().softmax(0).view_as(scores)


def chi_square(texts: Seq[Seq[int]], expected: torch.Tensor) -> float:
    """How far counts of texts are from what is expected, in standard deviations of the statistic:
    its mean is the number of cells less one, and its variance twice that. Cells in which fewer than
    four are expected are counted as one."""
    counts, rare, rare_expected = Counter(map(tuple, texts)), 0, 0.0
    statistic, num_cells = 0.0, 0
    for text in itertools.product(range(3), repeat=LENGTH):
        mean = float(expected[text]) * len(texts)
        if mean < 4:
            rare, rare_expected = rare + counts[text], rare_expected + mean
            continue
        statistic += (counts[text] - mean) ** 2 / mean
        num_cells += 1
    if rare_expected > 4:
        statistic += (rare - rare_expected) ** 2 / rare_expected
        num_cells += 1
    return (statistic - (num_cells - 1)) / (2 * (num_cells - 1)) ** 0.5
