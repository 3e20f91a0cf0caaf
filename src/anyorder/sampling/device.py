"""Answers for rows of logits that lie on an accelerator: torch, all rows at once, one copy back.

The same definitions as in `host`; draws may differ from the host's where two float64 sums round
differently, which takes a random number within 1e-15 of a boundary.

Shape suffixes: R rows, M rows with processed scores, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from anyorder.sampling.draws import draw_on_device, uniform
from anyorder.sampling.host import ranked
from anyorder.sampling.row import RowResult

if TYPE_CHECKING:
    from anyorder.sampling.row import Row


def answer(
    logits_RV: torch.Tensor,
    source_RV: torch.Tensor,
    scores_MV: torch.Tensor | None,
    work: list[int],
    rows: list[Row],
) -> list[RowResult]:
    """One result a row. Tokens come from the processed scores `scores_MV` for the rows listed in
    `work`; the others take the argmax of `source_RV`."""
    device = logits_RV.device
    chosen_R, tokens_R = source_RV.max(-1)
    if scores_MV is not None:
        chosen_M, tokens_M = scores_MV.max(-1)
        uniforms = [uniform(rows[index].request.seed, *rows[index].draw) for index in work]
        drawn_M = draw_on_device(
            scores_MV, torch.tensor(uniforms, dtype=torch.float64, device=device)
        )
        is_drawn_M = torch.tensor([rows[index].request.temperature > 0 for index in work])
        tokens_R[work] = torch.where(is_drawn_M.to(device), drawn_M, tokens_M)
        chosen_R[work] = chosen_M
    given_R = torch.tensor([row.given or 0 for row in rows], device=device)
    normaliser_R1 = logits_RV.logsumexp(-1, keepdim=True)
    ids_R2 = torch.stack((tokens_R, given_R), -1)
    columns = [tokens_R[:, None], chosen_R[:, None], normaliser_R1]
    columns.append(logits_RV.gather(1, ids_R2) - normaliser_R1)
    if any(row.outputs.entropy for row in rows):
        logprobs_RV = logits_RV - normaliser_R1
        columns.append(-(logprobs_RV * logprobs_RV.exp()).nansum(-1, keepdim=True))
    else:
        columns.append(torch.zeros_like(normaliser_R1))
    num_top = min(
        max(max(row.outputs.top, 2 * row.outputs.margin) for row in rows), len(logits_RV[0])
    )
    values_RK, ids_RK = logits_RV.topk(num_top)
    columns += [values_RK - normaliser_R1, ids_RK]
    table = torch.cat([column.double() for column in columns], -1).tolist()
    return [_result(row, line, num_top) for row, line in zip(rows, table, strict=True)]


def _result(row: Row, line: list[float], num_top: int) -> RowResult:
    token, chosen, normaliser, logprob, given, entropy, *rest = line
    values, ids = rest[:num_top], [int(id_) for id_ in rest[num_top:]]
    outputs, result = row.outputs, RowResult()
    if not math.isfinite(normaliser) or (outputs.token and not math.isfinite(chosen)):
        result.error = "no finite score"
        return result
    if outputs.token:
        result.token = int(token)
        result.logprob = logprob if outputs.logprob else None
    if row.given is not None:
        result.given = given
    if outputs.entropy:
        result.entropy = entropy
    if outputs.top:
        result.top = ranked(ids[: outputs.top], values[: outputs.top])
    if outputs.margin:
        second = math.exp(values[1]) if len(values) > 1 else 0.0
        result.margin = math.exp(values[0]) - second
    return result
