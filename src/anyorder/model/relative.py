"""T5's relative positions (arXiv 1910.10683): a learned bias of attention scores by distance.

Near distances have a bucket each, farther ones share buckets that widen logarithmically, and one
table of a bias per bucket and head serves all layers of a stack.

Shape suffixes: R requests, Q queries, K keys, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.config import RelativePositions


class RelativeBias(nn.Module):
    """The table, and what it adds to scores."""

    def __init__(self, positions: RelativePositions, num_heads: int) -> None:
        super().__init__()
        self.positions = positions
        self.weight = nn.Parameter(torch.empty(positions.num_buckets, num_heads))

    def forward(self, distance_RQK: torch.Tensor) -> torch.Tensor:
        """[R, H, Q, K], for the query's position less the key's."""
        return F.embedding(buckets(self.positions, distance_RQK), self.weight).permute(0, 3, 1, 2)


def buckets(positions: RelativePositions, distance: torch.Tensor) -> torch.Tensor:
    """int64, same shape: the bucket of each distance."""
    num_buckets, first = positions.num_buckets, torch.zeros_like(distance)
    if positions.bidirectional:
        num_buckets //= 2
        first = (distance < 0).long() * num_buckets
        distance = distance.abs()
    distance = distance.clamp(min=0)
    # The first half of the buckets hold one distance each. In float32, operation by operation as
    # the models were trained: at a bucket's edge the last bit decides.
    num_exact = num_buckets // 2
    logarithm = torch.log(distance.clamp(min=1).float() / num_exact)
    share = logarithm / math.log(positions.max_distance / num_exact)
    wide = num_exact + (share * (num_buckets - num_exact)).long()
    wide = wide.clamp(max=num_buckets - 1)
    return first + torch.where(distance < num_exact, distance, wide)
