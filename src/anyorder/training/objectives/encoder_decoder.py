"""Translation token by token: each target given its source and the targets before it.

Teacher forcing with label smoothing, as "Attention is all you need" (arXiv 1706.03762) trains an
encoder-decoder. A document's first token, where its text begins, is given.

Shape suffixes: B rows, T target and S source tokens each, M rows with a target, W width,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within, document_positions
from anyorder.core.pairs import encode_sources, reads
from anyorder.sampling.chain_rule import predicted
from anyorder.sampling.row_costs import row_costs
from anyorder.sampling.smoothing import smoothed_nats


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Objective):
    """Predict every target token from its source and those before it."""

    needs_sources: ClassVar[bool] = True

    label_smoothing: Annotated[
        float, Range(0.0, 0.9), "share of the target spread over the whole vocabulary"
    ] = 0.0

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over target tokens; the metric `nats` is without smoothing."""
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        packed = dense_batch(
            tokens_BT,
            causal_within(documents_BT),
            document_positions(documents_BT),
            memory=reads(*encode_sources(model, batch), documents_BT),
        )
        predicted_BT = predicted(batch)
        # The row before a target; a target is never a row's first token.
        hidden_MW = model.hidden(packed)[predicted_BT.roll(-1, dims=1).flatten()]

        def cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
            return smoothed_nats(logits_MV, targets_M, smoothing=self.label_smoothing)

        costs_M2 = row_costs(model, hidden_MW, cost, tokens_BT[predicted_BT])
        total, nats = costs_M2.sum(0).unbind()
        return Loss(
            total=total, weight=float(len(hidden_MW)), metrics={"nats": float(nats.detach())}
        )
