"""Answers for rows of logits that lie in main memory: NumPy, row by row.

One row of 50,000 floats fits a core's cache, and NumPy's argmax and sums over it are several times
faster than torch's, which pay for batching. Rows do not see each other, so an answer is the same in
any batch.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anyorder.sampling.draws import draw, uniform
from anyorder.sampling.row import RowResult
from anyorder.sampling.weights import weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyorder.sampling.row import Row

_FLOOR = -1e4
"""Stands for minus infinity where it is multiplied by its probability, 0."""


def answer(
    logits_RV: torch.Tensor,
    source_RV: torch.Tensor,
    scores_MV: torch.Tensor | None,
    work: list[int],
    rows: list[Row],
) -> list[RowResult]:
    """One result a row. Tokens come from the edited scores `scores_MV` for the rows listed in
    `work`, from `source_RV` for the others; temperature and truncation are applied here."""
    logits, source = logits_RV.numpy(), source_RV.numpy()
    scores: dict[int, NDArray[Any]] = {}
    if scores_MV is not None:
        scores = dict(zip(work, scores_MV.numpy(), strict=True))
    is_models = source_RV is logits_RV
    return [
        _answer(logits[index], scores.get(index, None if is_models else source[index]), row)
        for index, row in enumerate(rows)
    ]


def _answer(logits_V: NDArray[Any], scores_V: NDArray[Any] | None, row: Row) -> RowResult:
    """`scores_V`: None where they are the logits themselves, whose peak is looked for once."""
    result, outputs = RowResult(), row.outputs
    peak = None
    if scores_V is None:
        scores_V = logits_V
    if outputs.token:
        token = int(scores_V.argmax())
        if scores_V is logits_V:
            peak = token
        # Also finds NaN, which argmax takes for the largest.
        if not math.isfinite(scores_V[token]):
            result.error = "no finite score"
            return result
        if row.request.temperature > 0:
            ids, weights = weigh(scores_V, row.request)
            token = draw(weights, uniform(row.request.seed, *row.draw))
            token = token if ids is None else int(ids[token])
        result.token = token
    logprob = outputs.logprob and outputs.token
    if logprob or outputs.entropy or outputs.margin or outputs.top or row.given is not None:
        _describe(logits_V, int(logits_V.argmax()) if peak is None else peak, row, result)
    return result


def _describe(logits_V: NDArray[Any], likeliest: int, row: Row, result: RowResult) -> None:
    """Fill in what is asked of the model's distribution."""
    outputs = row.outputs
    peak = logits_V[likeliest]
    if not math.isfinite(peak):
        result.error = "no finite score"
        return
    below_V = logits_V - peak
    weights_V = np.exp(below_V, out=None if outputs.entropy else below_V)
    total = float(weights_V.sum())
    normaliser = float(peak) + math.log(total)
    if outputs.logprob and result.token is not None:
        result.logprob = float(logits_V[result.token]) - normaliser
    if row.given is not None:
        result.given = float(logits_V[row.given]) - normaliser
    if outputs.entropy:
        expected = (weights_V * np.maximum(below_V, _FLOOR)).sum()
        result.entropy = math.log(total) - float(expected) / total
    if outputs.top:
        count = min(outputs.top, len(logits_V))
        values, ids = torch.from_numpy(logits_V).topk(count)
        result.top = ranked(ids.tolist(), [value - normaliser for value in values.tolist()])
    if outputs.margin:
        weights_V[weights_V.argmax()] = 0.0
        result.margin = (1.0 - float(weights_V.max())) / total


def ranked(ids: list[int], scores: list[float]) -> list[tuple[int, float]]:
    """(id, score) by falling score, equal ones by id; impossible ones left out."""
    pairs = [pair for pair in zip(ids, scores, strict=True) if pair[1] > -math.inf]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
