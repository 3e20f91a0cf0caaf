"""What predictions cost, row by row, without the logits of all rows at once.

A batch of 64 x 1024 tokens over 50,000 words would need 13 GB of logits, and as much again for
their gradients. Here the logits of a few rows are made, turned into one number a row and forgotten;
the backward pass makes them again. Where all rows are few, their logits are kept.

Shape suffixes: M rows, W width, V vocabulary, S the tokens of it that a drafter scores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from anyorder.core.objective import TrainableModel

KEPT_LOGITS = 1 << 24
"""At most so many are kept for the backward pass; 64 MiB in float32."""
CHUNK_LOGITS = {"cpu": 1 << 21}
"""Of more, so many exist at once, by device: on a CPU what its caches hold, which is half as fast
again; elsewhere as many as are kept."""


def row_costs(
    model: TrainableModel,
    hidden_MW: torch.Tensor,
    cost: Callable[..., torch.Tensor],
    *columns: torch.Tensor,
) -> torch.Tensor:
    """`cost(logits_MV, *columns)` for all rows; its first dimension must be M again.

    `columns` are what else belongs to the rows, each [M, ...]. `cost` must draw no random numbers.
    """
    return _costs(model.logits, model.abilities.vocabulary_size, hidden_MW, cost, columns)


def draft_costs(
    model: TrainableModel,
    hidden_MW: torch.Tensor,
    cost: Callable[..., torch.Tensor],
    *columns: torch.Tensor,
) -> torch.Tensor:
    """The same for a drafter, whose `draft_logits` are handed over: of the tokens alone that it
    scores, and where it has further heads of each, [M, heads, S]."""
    scored_S = model.scored
    num_scored = model.abilities.vocabulary_size if scored_S is None else len(scored_S)
    num_logits = num_scored * max(model.abilities.num_heads, 1)
    return _costs(model.draft_logits, num_logits, hidden_MW, cost, columns)


def draft_columns(model: TrainableModel, tokens: torch.Tensor) -> torch.Tensor:
    """Where in a drafter's `draft_logits` these tokens are; -1 for those that it does not score."""
    scored_S = model.scored
    if scored_S is None:
        return tokens
    columns_V = tokens.new_full((model.abilities.vocabulary_size,), -1)
    columns_V[scored_S] = torch.arange(len(scored_S), device=tokens.device)
    return columns_V[tokens]


def _costs(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    num_logits: int,
    hidden_MW: torch.Tensor,
    cost: Callable[..., torch.Tensor],
    columns: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """`num_logits`: of a row."""

    def of_chunk(chunk_MW: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return cost(logits_of(chunk_MW), *others)

    if len(hidden_MW) <= max(1, KEPT_LOGITS // num_logits):
        return of_chunk(hidden_MW, *columns)
    num_rows = max(1, CHUNK_LOGITS.get(hidden_MW.device.type, KEPT_LOGITS) // num_logits)
    chunks = zip(*(torch.split(tensor, num_rows) for tensor in (hidden_MW, *columns)), strict=True)
    costs = [
        checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return torch.cat(costs)


def row_nats(
    model: TrainableModel,
    hidden_MW: torch.Tensor,
    targets_M: torch.Tensor,
    *,
    banned: int | None = None,
) -> torch.Tensor:
    """-log p(target) of each row, [M]; the token `banned` has no probability."""

    def cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        if banned is not None:
            logits_MV[:, banned] = -torch.inf  # in place: nobody else has them
        return F.cross_entropy(logits_MV, targets_M, reduction="none")

    return row_costs(model, hidden_MW, cost, targets_M)
