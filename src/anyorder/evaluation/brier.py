"""How well a model predicts, from its draws alone: the Brier score of n-grams (arXiv 2510.27688).

For two independent draws x, x' of what follows a text, and what does follow, y,

    Brier-n = E[ 1(x = y) + 1(x' = y) - 1(x = x') ]

over n-grams, which is E[2 p(y) - sum over z of p(z)^2]: strictly proper, and at most what the text
itself would reach. It needs no probabilities, so that one scale holds for all decoding methods, for
diffusion and for vectors. BrierLM is 100 times the geometric mean of Brier-1 to Brier-4. Few draws
scatter widely for long n-grams; an estimate below 0 counts as 0 in the mean.

Shape suffixes: M places in texts, L tokens drawn at each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anyorder.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BrierScore:
    """Estimates over many places."""

    scores: tuple[float, ...]
    """Brier-1, Brier-2, ..."""
    standard_errors: tuple[float, ...]
    """Of the scores, from draws and places together."""
    num_places: int

    @property
    def brier_lm(self) -> float:
        """100 times the geometric mean of the scores."""
        return 100 * math.prod(max(score, 0.0) for score in self.scores) ** (1 / len(self.scores))


def brier(first_ML: npt.ArrayLike, second_ML: npt.ArrayLike, true_ML: npt.ArrayLike) -> BrierScore:
    """The scores of n-grams of up to L tokens (4 for BrierLM), from two draws of each place's
    continuation, independent of each other, and the true continuations: token ids, all [M, L]."""
    first, second, true = (np.asarray(ids) for ids in (first_ML, second_ML, true_ML))
    if not first.shape == second.shape == true.shape or first.ndim != 2 or len(true) < 2:
        raise UserError(
            "Brier scores need two draws and the truth for at least 2 places, of equal lengths; "
            f"got {list(first.shape)}, {list(second.shape)} and {list(true.shape)}."
        )

    def agree(ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[M, L]; are all tokens up to here the same?"""
        return np.logical_and.accumulate(ours == theirs, axis=1).astype(np.int64)

    values_ML = agree(first, true) + agree(second, true) - agree(first, second)
    errors = values_ML.std(axis=0, ddof=1) / math.sqrt(len(true))
    return BrierScore(
        scores=tuple(values_ML.mean(axis=0).tolist()),
        standard_errors=tuple(errors.tolist()),
        num_places=len(true),
    )
