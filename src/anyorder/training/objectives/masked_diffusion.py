"""Masked diffusion: hide a random share of the tokens, predict them all from the rest.

MDLM (Sahoo et al., arXiv 2406.07524) and LLaDA (arXiv 2502.09992): the continuous-time bound on the
negative log-likelihood is a weighted cross-entropy of the hidden tokens. Visible tokens carry over
and the mask token is never predicted (SUBS). The model is not told the time, since the number of
masks tells it. The bound is also the mean, over all orders, of the chain rule in that order.

Levels of noise below `min_noise` are left out and the rest is averaged: still a bound where
prediction gets harder with noise, and the estimate scatters less.

Shape suffixes: B sequences, T tokens each, M masked tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_positions, document_starts, same_document
from anyorder.sampling.noise import MaskSchedule, draw_masks
from anyorder.sampling.row_costs import row_nats


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(Objective):
    """Predict masked tokens from all that are left."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True

    schedule: Annotated[MaskSchedule, "how often each share of masks is drawn"] = "linear"
    min_noise: Annotated[float, Range(0.0, 1.0), "smallest share of masks drawn"] = 1e-3

    def trained(self, abilities: Abilities) -> Abilities:
        """It denoises a text as a whole."""
        return replace(super().trained(abilities), whole_canvas=True)

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Over weight, an estimate of the bound in nats per target token, masked or not."""
        mask_token = model.abilities.mask_token
        assert mask_token is not None, "check() refuses models without a mask token"
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        masked_BT, weights_BT = draw_masks(
            document_starts(documents_BT),
            batch.targets_BT,
            schedule=self.schedule,
            lowest=self.min_noise,
            highest=1.0,
            rng=rng,
        )
        packed = dense_batch(
            tokens_BT.masked_fill(masked_BT, mask_token),
            same_document(documents_BT),
            document_positions(documents_BT),
        )
        hidden_MW = model.hidden(packed)[masked_BT.flatten()]
        nats_M = row_nats(model, hidden_MW, tokens_BT[masked_BT], banned=mask_token)
        total = (nats_M * weights_BT[masked_BT]).sum()
        return Loss(
            total=total,
            weight=float(batch.targets_BT.sum()),
            metrics={"nats": float(total.detach())},
        )
