"""Distillation: a student learns the distributions of a teacher, token by token.

Hinton et al., arXiv 1503.02531: both at a temperature, the divergence times its square, so that its
gradient keeps its size; mixed with the cross-entropy of the text itself. The divergence is forward
(cover all that the teacher finds likely) or reverse (keep to what it finds likely; MiniLLM, arXiv
2306.08543, which also draws the texts from the student; that part is not here). The teacher is any
decoder with the same vocabulary and causal attention, named by the recipe's [teacher].

Sequence-level distillation (Kim and Rush, arXiv 1606.07947) needs no objective of its own: let the
teacher write the texts (`anyorder data synthesize`) and train on them with next_token.

Shape suffixes: B sequences, T tokens each, M rows with a target, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within, document_positions, document_starts
from anyorder.sampling.divergences import Divergence, divergence
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class Distillation(Objective):
    """Predict what a teacher predicts."""

    needs_teacher: ClassVar[bool] = True

    divergence: Annotated[
        Divergence, "forward: cover what the teacher finds likely; reverse: keep to it"
    ] = "forward"
    temperature: Annotated[float, Range(0.01, 100.0), "of teacher and student"] = 1.0
    text: Annotated[float, Range(0.0, 1.0), "share of the text's own cross-entropy in the loss"] = (
        0.0
    )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over target tokens; the metrics are the divergence at temperature 1, in the chosen
        direction, and the text's `nats`."""
        teacher = model.teacher
        assert teacher is not None, "a recipe without a teacher is refused"
        ours, theirs = model.abilities.vocabulary_size, teacher.abilities.vocabulary_size
        if ours != theirs:
            raise UserError(
                f"{model.abilities.name} has {ours} tokens and its teacher "
                f"{teacher.abilities.name} has {theirs}; distillation needs one vocabulary: give "
                "[data] the teacher's tokenizer."
            )
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        predicted_BT = batch.targets_BT & ~document_starts(documents_BT)
        visible_BTT, positions_BT = causal_within(documents_BT), document_positions(documents_BT)
        # The rows before the targets, as a target is never a row's first token.
        rows = predicted_BT.roll(-1, dims=1).flatten()
        with torch.no_grad():
            theirs_MW = teacher.hidden(dense_batch(tokens_BT, visible_BTT, positions_BT))[rows]

        def cost(
            logits_MV: torch.Tensor, targets_M: torch.Tensor, theirs_MW: torch.Tensor
        ) -> torch.Tensor:
            with torch.no_grad():
                teacher_MV = teacher.logits(theirs_MW)
            nats_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
            plain_M = divergence(logits_MV, teacher_MV, self.divergence)
            soft_M = plain_M
            if self.temperature != 1.0:
                soft_M = self.temperature**2 * divergence(
                    logits_MV, teacher_MV, self.divergence, temperature=self.temperature
                )
            cost_M = (1 - self.text) * soft_M + self.text * nats_M
            return torch.stack((cost_M, plain_M, nats_M), dim=1)

        ours_MW = model.hidden(dense_batch(tokens_BT, visible_BTT, positions_BT))[rows]
        costs_M3 = row_costs(model, ours_MW, cost, tokens_BT[predicted_BT], theirs_MW)
        total, plain, nats = costs_M3.sum(0).unbind()
        return Loss(
            total=total,
            weight=float(len(costs_M3)),
            metrics={"divergence": float(plain.detach()), "nats": float(nats.detach())},
        )
