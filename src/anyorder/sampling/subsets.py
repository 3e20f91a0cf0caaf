"""Random subsets of given sizes, one in each document of packed rows.

Shape suffixes: B rows, T tokens each, U units (documents, and padding).
"""

from __future__ import annotations

import torch

from anyorder.core.packing import document_starts


def units(documents_BT: torch.Tensor) -> torch.Tensor:
    """int64 [B, T]; the documents numbered through all rows, padding being one more in its row."""
    return document_starts(documents_BT).flatten().cumsum(0).sub(1).view_as(documents_BT)


def count(flags_BT: torch.Tensor, units_BT: torch.Tensor) -> torch.Tensor:
    """int64 [U]; how many tokens of each unit are flagged."""
    num_units = int(units_BT[-1, -1]) + 1
    return torch.bincount(units_BT[flags_BT], minlength=num_units)


def random_subsets(
    candidates_BT: torch.Tensor,
    units_BT: torch.Tensor,
    sizes_U: torch.Tensor,
    rng: torch.Generator,
) -> torch.Tensor:
    """bool [B, T]; of each unit's candidates so many, every choice equally likely.

    Draws one number for each token, candidate or not, so that the choices of one document do not
    depend on what others hold.
    """
    draws_BT = torch.rand(candidates_BT.shape, generator=rng, dtype=torch.float64)
    chosen_N = units_BT[candidates_BT]
    draws_N = draws_BT.to(units_BT.device)[candidates_BT]
    # By unit, and within it by draw: two stable sorts.
    order_N = draws_N.argsort(stable=True)
    order_N = order_N[chosen_N[order_N].argsort(stable=True)]
    counts_U = torch.bincount(chosen_N, minlength=len(sizes_U))
    firsts_U = counts_U.cumsum(0) - counts_U
    ranks_N = torch.empty_like(order_N)
    ranks_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    ranks_N = ranks_N - firsts_U[chosen_N]
    picked_BT = torch.zeros_like(candidates_BT)
    picked_BT[candidates_BT] = ranks_N < sizes_U[chosen_N]
    return picked_BT
