"""Medusa: further heads on a frozen target's last hidden state learn the tokens after the next.

Medusa-1 (Cai et al., arXiv 2401.10774): head h predicts the token h + 2 positions after its row's,
by cross-entropy with the text, heads further ahead counting for less (0.8 to the power of h + 1).
Or by the divergence from what the target itself predicts there, given the text up to it, over the
tokens that heads score; where the text has another one, a head has nothing to learn. The best text
is the target's own (`anyorder data synthesize`), since its words are what is to be guessed.

Not here: Medusa-2, which trains the target along.

Shape suffixes: B sequences, T tokens each, M rows with a target, C heads, W width, S tokens that
heads score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within, document_positions
from anyorder.sampling.divergences import divergence
from anyorder.sampling.row_costs import draft_columns, draft_costs


@dataclass(frozen=True, kw_only=True)
class Medusa(Objective):
    """Heads on a frozen target guess the tokens after the next."""

    needs_teacher: ClassVar[bool] = True

    targets: Annotated[
        Literal["tokens", "distribution"], "the text's tokens, or all that the target predicts"
    ] = "tokens"
    decay: Annotated[float, Range(0.01, 1.0), "weight of a head, over that of the one before"] = 0.8

    def check(self, abilities: Abilities) -> None:
        super().check(abilities)
        if not abilities.num_heads:
            raise UserError(
                f"medusa trains Medusa heads; {abilities.name} has none: give [model] kind = "
                '"medusa".'
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over rows that the first head has a target for; of each row all heads' costs, by
        their weights. The metric is how often the first head's guess is the text's token."""
        target = model.teacher
        assert target is not None, "a recipe without a teacher is refused"
        tokens_BT, documents_BT = batch.tokens_BT, batch.documents_BT
        ahead = range(2, 2 + model.abilities.num_heads)
        known_BTC = torch.stack([_known(batch, distance) for distance in ahead], dim=2)
        columns_BT = draft_columns(model, tokens_BT)
        # What lies beyond the row comes round from its start; nobody asks for it.
        wanted_BTC = torch.stack([columns_BT.roll(-distance, dims=1) for distance in ahead], dim=2)
        known_BTC &= wanted_BTC >= 0
        packed = dense_batch(
            tokens_BT, causal_within(documents_BT), document_positions(documents_BT)
        )
        with torch.no_grad():
            hidden_BTW = target.hidden(packed).view(*tokens_BT.shape, -1)
        rows_BT = known_BTC.any(dim=2)
        columns = [wanted_BTC[rows_BT], known_BTC[rows_BT]]
        if self.targets == "distribution":
            # The target predicts a token from the row before it.
            before = [hidden_BTW.roll(1 - distance, dims=1)[rows_BT] for distance in ahead]
            columns.append(torch.stack(before, dim=1))
        weights_C = torch.tensor(
            [self.decay ** (distance - 1) for distance in ahead], device=tokens_BT.device
        )

        def cost(
            logits_MCS: torch.Tensor,
            wanted_MC: torch.Tensor,
            known_MC: torch.Tensor,
            before_MCW: torch.Tensor | None = None,
        ) -> torch.Tensor:
            if before_MCW is None:
                flat = F.cross_entropy(
                    logits_MCS.flatten(0, 1), wanted_MC.clamp(min=0).flatten(), reduction="none"
                )
                costs_MC = flat.view_as(wanted_MC)
            else:
                with torch.no_grad():
                    theirs = target.logits_of(before_MCW.flatten(0, 1), model.scored)
                costs_MC = divergence(logits_MCS, theirs.view_as(logits_MCS))
            right_M = logits_MCS[:, 0].argmax(dim=-1) == wanted_MC[:, 0]
            cost_M = (costs_MC * known_MC * weights_C).sum(dim=1)
            return torch.stack((cost_M, (right_M & known_MC[:, 0]).to(cost_M.dtype)), dim=1)

        costs_M2 = draft_costs(model, hidden_BTW[rows_BT], cost, *columns)
        total, right = costs_M2.sum(0).unbind()
        return Loss(
            total=total,
            weight=float(known_BTC[:, :, 0].sum()),
            metrics={"right": float(right.detach())},
        )


def _known(batch: TrainingBatch, distance: int) -> torch.Tensor:
    """bool [B, T]; is the token so far after this one a target of the same document?"""
    documents_BT = batch.documents_BT
    length = documents_BT.shape[1]
    together_BT = documents_BT == documents_BT.roll(-distance, dims=1)
    inside_T = torch.arange(length, device=documents_BT.device) < length - distance
    return together_BT & inside_T & batch.targets_BT.roll(-distance, dims=1)
