"""Next-token prediction: the cross-entropy of each token given those before it in its document.

The chain rule makes the sum exactly the text's negative log-likelihood. Label smoothing after
Szegedy et al., arXiv 1512.00567; the z-loss, which keeps logits from drifting, after PaLM, arXiv
2204.02311. A document's first token has nothing before it and is not asked for.

Shape suffixes: B sequences, T tokens each, M rows with a target, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from anyorder.core.batch import dense_batch
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within, document_positions, document_starts
from anyorder.sampling.partition import log_partition
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Predict every token from those before it."""

    label_smoothing: Annotated[
        float, Range(0.0, 0.9), "share of the target spread over the whole vocabulary"
    ] = 0.0
    z_loss: Annotated[float, Range(0.0, 1.0), "weight of the squared log of the softmax's sum"] = (
        0.0
    )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over target tokens; the metric `nats` is without smoothing and z-loss."""
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        predicted_BT = batch.targets_BT & ~document_starts(documents_BT)
        packed = dense_batch(
            tokens_BT, causal_within(documents_BT), document_positions(documents_BT)
        )
        hidden_BTW = model.hidden(packed).view(*tokens_BT.shape, -1)
        # The row before a target, as a target is never a row's first token.
        hidden_MW = hidden_BTW[:, :-1][predicted_BT[:, 1:]]
        costs_M2 = row_costs(model, hidden_MW, self._cost, tokens_BT[predicted_BT])
        total, nats = costs_M2.sum(0).unbind()
        return Loss(
            total=total, weight=float(len(hidden_MW)), metrics={"nats": float(nats.detach())}
        )

    def _cost(self, logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """[M, 2]: what to train with, and nats."""
        nats_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
        cost_M = nats_M
        if self.label_smoothing or self.z_loss:
            sums_M = log_partition(logits_MV)
            spread_M = sums_M - logits_MV.mean(dim=-1)
            cost_M = nats_M + self.label_smoothing * (spread_M - nats_M)
            cost_M = cost_M + self.z_loss * sums_M.square()
        return torch.stack((cost_M, nats_M), dim=1)
