"""What texts cost token by token, left to right: the part that several objectives build on.

Shape suffixes: B rows, T tokens each, M targets, W width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.objective import TrainableModel, TrainingBatch
from anyorder.core.packing import causal_within, document_positions, document_starts
from anyorder.sampling.row_costs import row_costs


def predicted(batch: TrainingBatch) -> torch.Tensor:
    """bool [B, T]; targets that have something before them in their document."""
    return batch.targets_BT & ~document_starts(batch.documents_BT)


def causal_batch(batch: TrainingBatch) -> PackedBatch:
    """A pass in which each token sees those before it in its document."""
    documents_BT = batch.documents_BT
    visible = causal_within(documents_BT)
    return dense_batch(batch.tokens_BT, visible, document_positions(documents_BT))


def chain_rule_nats(
    model: TrainableModel,
    batch: TrainingBatch,
    packed: PackedBatch | None = None,
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """-log p of every `predicted` token, [M] in order of rows.

    `packed`: a pass over other inputs than the batch's own tokens. `temperature` divides the
    logits."""

    def cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_MV / temperature, targets_M, reduction="none")

    predicted_BT = predicted(batch)
    hidden_NW = model.hidden(packed or causal_batch(batch))
    # The row before a target; a target is never a row's first token.
    hidden_MW = hidden_NW[predicted_BT.roll(-1, dims=1).flatten()]
    return row_costs(model, hidden_MW, cost, batch.tokens_BT[predicted_BT])
