"""Controls that shape the distribution before a draw, for one row in main memory.

The definitions are those of `truncation`, which works on many rows of an accelerator. Here a row is
cut down to the few tokens that can survive as early as possible, which makes a draw with top-k or
top-p several times faster than passes over the whole vocabulary.

Shape suffixes: V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyorder.core.request import Request

_PREFIXES = (256, 4096)
"""How many leading tokens to look at before sorting a whole vocabulary."""
_COLUMNS = 3
"""Columns per wanted token in `_leading`; more find fewer candidates but take longer."""
_FLOOR = -1e4
"""Stands for minus infinity where it is multiplied by its probability, 0."""


def weigh(
    scores_V: NDArray[Any], request: Request
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
    """Rising ids of the tokens that may be drawn (None: all) and their weights, not normalised.

    `scores_V` is float32 with a finite highest score; the request's temperature is above 0.
    """
    ids: NDArray[np.int64] | None = None
    peak = scores_V[scores_V.argmax()]
    temperature = max(request.temperature, float(np.finfo(np.float32).tiny))
    if 0 < request.top_k < len(scores_V):
        ids = _leading(scores_V, request.top_k)
        leading_C = scores_V[ids]
        least = np.partition(leading_C, -request.top_k)[-request.top_k]
        ids = ids[leading_C >= least]
    elif request.min_p and request.top_p == 1.0:
        # Min-p acts first, so its threshold finds the candidates; exactly below, roughly here.
        margin = temperature * -math.log(request.min_p)
        ids = (scores_V >= peak - np.float32(margin * 1.001 + 1e-3)).nonzero()[0]
    logits_C = (scores_V if ids is None else scores_V[ids]).astype(np.float64)
    logits_C -= peak
    logits_C /= temperature
    weights_C = np.exp(logits_C)
    if request.top_p < 1.0:
        kept = logits_C >= _reach(logits_C, weights_C, request.top_p * weights_C.sum())
        ids, logits_C, weights_C = _cut(ids, kept), logits_C[kept], weights_C[kept]
    if request.min_p:
        kept = weights_C >= request.min_p
        ids, logits_C, weights_C = _cut(ids, kept), logits_C[kept], weights_C[kept]
    if request.typical_p < 1.0:
        total = weights_C.sum()
        logprobs_C = np.maximum(logits_C - np.log(total), _FLOOR)
        entropy = -(logprobs_C * weights_C).sum() / total
        typical_C = -abs(logprobs_C + entropy)
        kept = typical_C >= _reach(typical_C, weights_C, request.typical_p * total)
        ids, weights_C = _cut(ids, kept), weights_C[kept]
    return ids, weights_C


def _cut(ids: NDArray[np.int64] | None, kept: NDArray[np.bool]) -> NDArray[np.int64]:
    return kept.nonzero()[0] if ids is None else ids[kept]


def _leading(keys_V: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Rising places of all keys from some threshold on, at least `count` of them.

    The highest keys of many columns are high: `count` columns have a key of at least the
    count-highest column maximum, which a look at the maxima alone finds.
    """
    num_rows = max(1, len(keys_V) // (_COLUMNS * count))
    num_columns = len(keys_V) // num_rows
    highest = keys_V[: num_rows * num_columns].reshape(num_rows, num_columns).max(0)
    places: NDArray[np.int64] = (keys_V >= np.partition(highest, -count)[-count]).nonzero()[0]
    return places


def _reach(keys_V: NDArray[Any], weights_V: NDArray[np.float64], mass: float) -> float:
    """The key, by falling keys, at which the weights add up to the mass; the lowest one if rounding
    keeps that out of reach."""
    size = len(keys_V)
    for count in (*(prefix for prefix in _PREFIXES if prefix < size), size):
        places = _leading(keys_V, count) if count < size else np.arange(size)
        places = places[(-keys_V[places]).argsort(kind="stable")]
        last = int(weights_V[places].cumsum().searchsorted(mass))
        if last < len(places):
            break
    return float(keys_V[places[min(last, len(places) - 1)]])
