"""Everything between logits and the small host-side values that a method receives.

`sample` answers many rows of many requests at once. Every row has two distributions: the model's,
which log-probabilities, entropies and alternatives describe, and the processed one, from which
tokens are drawn (`processors`, then `truncation`, then `draws`). Rows pay only for the stages that
they use, and a row's answer does not depend on the rows beside it.

Shape suffixes: R rows, M rows with processed scores, B rows with search scores, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np
import torch

from anyorder.sampling import device, host
from anyorder.sampling.draws import draw, uniform
from anyorder.sampling.processors import edit, edits, nothing_left
from anyorder.sampling.row import Row, RowResult
from anyorder.sampling.truncation import shape
from anyorder.sampling.verify import dense
from anyorder.sampling.weights import weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Row", "RowResult", "sample"]

_ROWS_AT_A_TIME = 128
"""Bounds the memory for copies of logits, whatever the number of rows."""


def sample(
    logits_RV: torch.Tensor, rows: Seq[Row], processed: torch.Tensor | None = None
) -> list[RowResult]:
    """One result a row.

    `logits_RV` are the model's, float32, and stay as they are. `processed`, of the same shape,
    replaces them as what the processed distribution starts from (guidance by a second prompt or
    model): such scores count as log-probabilities for `Outputs.best` already. A row that cannot be
    answered gets `RowResult.error`; the others are not affected.
    """
    assert logits_RV.dtype == torch.float32, f"logits must be float32, got {logits_RV.dtype}"
    assert len(logits_RV) == len(rows), f"{len(logits_RV)} rows of logits for {len(rows)} rows"
    logits_RV = logits_RV.detach()
    if len(rows) <= _ROWS_AT_A_TIME:
        return _sample(logits_RV, list(rows), processed)
    results: list[RowResult] = []
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        source = None if processed is None else processed[some]
        results += _sample(logits_RV[some], list(rows[some]), source)
    return results


def _sample(
    logits_RV: torch.Tensor, rows: list[Row], processed: torch.Tensor | None
) -> list[RowResult]:
    source_RV = logits_RV if processed is None else processed.detach()
    errors: dict[int, str] = {}
    is_host = on_host(logits_RV)
    work = [
        index
        for index, row in enumerate(rows)
        if row.outputs.token and (edits(row) or (row.request.temperature > 0 and not is_host))
    ]
    scores_MV = None
    if work:
        chosen = [rows[index] for index in work]
        scores_MV = source_RV.clone() if len(work) == len(rows) else source_RV[work]
        errors |= {work[index]: error for index, error in edit(scores_MV, chosen).items()}
        if not is_host:
            scores_MV = shape(scores_MV, chosen)
    answer = host.answer if is_host else device.answer
    results = answer(logits_RV, source_RV, scores_MV, work, rows)
    if any(row.outputs.best for row in rows):
        errors |= _search(source_RV, processed is None, rows, results)
    whole = []
    for index, row in enumerate(rows):
        wants = row.outputs
        if wants.processed and processed is None and _is_models(row):
            results[index].confidence = results[index].logprob
        elif wants.distribution or wants.draws or wants.chance or wants.processed:
            whole.append(index)
    if whole:
        for index, scores_V in zip(whole, source_RV[whole].cpu(), strict=True):
            errors |= _distribute(scores_V[None], index, rows[index], results[index])
    for index, result in enumerate(results):
        if index in errors:
            result.error = errors[index]
        elif result.error is not None:
            result.error = _reason(rows[index], source_RV[index])
    return results


def _search(
    source_RV: torch.Tensor, raw: bool, rows: list[Row], results: list[RowResult]
) -> dict[int, str]:
    """Fill in `RowResult.best`; returns errors by row."""
    asked = [index for index, row in enumerate(rows) if row.outputs.best]
    scores_BV = source_RV[asked]
    if raw:
        scores_BV = scores_BV.log_softmax(-1)
    chosen = [rows[index] for index in asked]
    errors = {asked[index]: error for index, error in edit(scores_BV, chosen).items()}
    most = min(max(row.outputs.best for row in chosen), scores_BV.shape[1])
    values, ids = scores_BV.topk(most)
    for index, line, tokens in zip(asked, values.tolist(), ids.tolist(), strict=True):
        # Impossible tokens are left out, and NaN (which compares with nothing) with them.
        best = host.ranked(tokens, line)[: rows[index].outputs.best]
        results[index].best = best
        if not best:
            results[index].error = "no finite score"
    return errors


def _distribute(scores_1V: torch.Tensor, index: int, row: Row, result: RowResult) -> dict[int, str]:
    """Fill in what takes the processed distribution as a whole: `RowResult.distribution`, `draws`
    and `chance`, and what describes it; returns errors by row. In main memory, since checks decide
    there, one place after the other. The scores are written to."""
    errors = edit(scores_1V, [row]) if edits(row) else {}
    scores_V = scores_1V[0].numpy()
    best = int(scores_V.argmax())
    if errors or not math.isfinite(scores_V[best]):
        return {index: errors.get(0, "")} if errors else _no_score(result)
    if row.request.temperature > 0:
        probabilities_V = dense(*weigh(scores_V, row.request), len(scores_V))
    else:
        probabilities_V = np.zeros(len(scores_V))
        probabilities_V[best] = 1.0
    result.draws = [
        draw(probabilities_V, uniform(row.request.seed, *row.draw, order + 1))
        for order in range(row.outputs.draws)
    ]
    if row.outputs.chance:
        result.chance = float(probabilities_V[row.given])
    result.distribution = probabilities_V if row.outputs.distribution else None
    if row.outputs.processed and result.token is not None:
        if row.request.temperature == 0:
            weights_V = np.exp(scores_V.astype(np.float64) - scores_V[best])
            probabilities_V = weights_V / weights_V.sum()
        _judge(probabilities_V, row, result)
    return {}


def _is_models(row: Row) -> bool:
    """Is the processed distribution, but for the argmax of temperature 0, the model's?"""
    request = row.request
    whole = not request.top_k and request.top_p == request.typical_p == 1.0 and not request.min_p
    return not edits(row) and (request.temperature == 0 or (request.temperature == 1.0 and whole))


def _judge(probabilities_V: NDArray[np.float64], row: Row, result: RowResult) -> None:
    """Describe the processed distribution: the token in it, its entropy, its margin."""
    assert result.token is not None, "nothing was drawn"
    likely = probabilities_V[result.token]
    result.confidence = math.log(likely) if likely > 0 else -math.inf
    if row.outputs.entropy:
        some = probabilities_V[probabilities_V > 0]
        result.entropy = float(-(some * np.log(some)).sum())
    if row.outputs.margin:
        second, first = np.partition(probabilities_V, -2)[-2:]
        result.margin = float(first - second)


def _no_score(result: RowResult) -> dict[int, str]:
    result.error = "no finite score"
    return {}


def _reason(row: Row, source_V: torch.Tensor) -> str:
    """Why no token can be chosen."""
    if edits(row) and math.isfinite(float(source_V.max())):
        return nothing_left(row)
    return "the model's logits hold NaN or infinity, or nothing but minus infinity."


def on_host(logits_RV: torch.Tensor) -> bool:
    """Do they lie in main memory?"""
    return logits_RV.device.type == "cpu"
