"""Cross-entropy with label smoothing (Szegedy et al., arXiv 1512.00567), also without one token.

Shape suffixes: M rows, V vocabulary.
"""

from __future__ import annotations

import torch

from anyorder.sampling.partition import log_partition


def smoothed_nats(
    logits_MV: torch.Tensor, targets_M: torch.Tensor, *, smoothing: float, banned: int | None = None
) -> torch.Tensor:
    """[M, 2]: what to train with, and -log p(target).

    `smoothing` is the share of the target that is spread evenly over the vocabulary; `banned`, a
    token outside it that has no probability.
    """
    size = logits_MV.shape[1]
    sums_M = logits_MV.sum(dim=1)
    if banned is not None:
        sums_M = sums_M - logits_MV[:, banned]
        size -= 1
        hole_V = torch.arange(logits_MV.shape[1], device=logits_MV.device) == banned
        logits_MV = logits_MV.masked_fill(hole_V, -torch.inf)
    partition_M = log_partition(logits_MV)
    nats_M = partition_M - logits_MV.gather(1, targets_M[:, None])[:, 0]
    spread_M = partition_M - sums_M / size
    return torch.stack((nats_M + smoothing * (spread_M - nats_M), nats_M), dim=1)
