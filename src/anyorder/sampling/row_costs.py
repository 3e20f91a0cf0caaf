"""What predictions cost, row by row, without the logits of all rows at once.

A batch of 64 x 1024 tokens over 50,000 words would need 13 GB of logits, and as much again for
their gradients. Here the logits of a few rows are made, turned into one number a row and forgotten;
the backward pass makes them again.

Shape suffixes: M rows, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from anyorder.core.objective import TrainableModel

CHUNK_LOGITS = 1 << 24
"""Most logits that exist at once; 64 MiB in float32."""


def row_costs(
    model: TrainableModel,
    hidden_MW: torch.Tensor,
    cost: Callable[..., torch.Tensor],
    *columns: torch.Tensor,
    further: bool = False,
) -> torch.Tensor:
    """`cost(logits_MV, *columns)` for all rows; its first dimension must be M again.

    `columns` are what else belongs to the rows, each [M, ...]. `cost` must draw no random numbers.
    `further`: it is given the logits [M, heads, V] of the model's further heads instead.
    """
    num_heads = model.abilities.num_heads if further else 1

    def of_chunk(chunk_MW: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return cost(model.heads(chunk_MW) if further else model.logits(chunk_MW), *others)

    num_rows = max(1, CHUNK_LOGITS // (model.abilities.vocabulary_size * num_heads))
    chunks = zip(*(torch.split(tensor, num_rows) for tensor in (hidden_MW, *columns)), strict=True)
    costs = [
        checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return torch.cat(costs)


def nats_without(
    model: TrainableModel, hidden_MW: torch.Tensor, targets_M: torch.Tensor, banned: int
) -> torch.Tensor:
    """-log p(target) of each row, [M], where the token `banned` has no probability."""

    def cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        logits_MV[:, banned] = -torch.inf  # in place: nobody else has them
        return F.cross_entropy(logits_MV, targets_M, reduction="none")

    return row_costs(model, hidden_MW, cost, targets_M)
