"""`model.backends.ragged.attend` by its definition, in plain torch: no Triton, any type of number.

Every row of the batch is a query by itself, its keys are looked up one by one.
"""

from __future__ import annotations

import torch

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.model.backends.sdpa import Pattern


def attend(
    queries_NHD: torch.Tensor, batch: PackedBatch, pool: KeyValuePool, layer: int, pattern: Pattern
) -> torch.Tensor:
    rows, slots_N = batch.ragged, batch.slots_N
    assert rows is not None and slots_N is not None
    keys, values = (stored.flatten(0, 1) for stored in pool.pages(layer))
    page_size = pool.pages(layer)[0].shape[1]
    sharing = queries_NHD.shape[1] // keys.shape[1]
    mixed_NHD = torch.full_like(queries_NHD, torch.nan)
    for first, num, past, page_row, mask_start in rows.requests_R5.tolist():
        old_K = torch.arange(past)
        slots_K = rows.pages_TP[page_row, old_K // page_size] * page_size + old_K % page_size
        own = slice(first, first + num)
        slots_K = torch.cat((slots_K, slots_N[own]))
        positions_K = torch.cat((old_K, batch.positions_N[own]))
        if mask_start < 0:
            told_QQ = torch.ones(num, num, dtype=torch.bool).tril()
        else:
            told_QQ = rows.visible_M[mask_start : mask_start + num * num].view(num, num)
        seen_QK = torch.cat((torch.ones(num, past, dtype=torch.bool), told_QQ), 1)
        if pattern.window is not None:
            starts_Q1 = rows.window_positions_N[own, None]
            seen_QK = seen_QK & (starts_Q1 - positions_K < pattern.window)
            if pattern.window_ahead:
                seen_QK &= batch.positions_N[own, None] - positions_K > -pattern.window
        keys_KHD = keys[slots_K].repeat_interleave(sharing, 1)
        values_KHD = values[slots_K].repeat_interleave(sharing, 1)
        scores_HQK = torch.einsum("qhd,khd->hqk", queries_NHD[own], keys_KHD) * pattern.scale
        shares_HQK = scores_HQK.masked_fill(~seen_QK, -torch.inf).softmax(-1)
        mixed_NHD[own] = torch.einsum("hqk,khd->qhd", shares_HQK, values_KHD)
    return mixed_NHD.flatten(1)
