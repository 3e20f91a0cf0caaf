"""Scheduled sampling for Transformers: learn to go on from one's own predictions.

Bengio et al., arXiv 1506.03099, in two passes (Mihaylova and Martins, arXiv 1906.07651): the first
reads the text and predicts every token; some of these predictions, more and more as training goes
on, replace the text in the input of the second, which is asked for the text as ever. Predictions
are the likeliest tokens, drawn ones, or mixtures of the likeliest ones' embeddings by their
probabilities. With further passes each predicts from the mix of the one before, with the same draws
(parallel scheduled sampling, Duckworth et al., arXiv 1906.04331); as many as a text has tokens give
what generating it token by token would.

Gradients flow through the last pass, and with `mixed` predictions and `through` = all through the
weights of the mixtures into the earlier ones too.

What it cannot do: the text's next token need not be right after a wrong one, so that in the limit
the optimum is not the text's distribution (Huszar, arXiv 1511.05101). Published gains over plain
next_token are small or none.

Shape suffixes: B rows, T tokens each, M replaced places, K tokens mixed, W width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.sampling.chain_rule import causal_batch, chain_rule_nats, predicted
from anyorder.sampling.draws import draw_on_device
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class ScheduledSampling(Objective):
    """Predict every token from those before it, some of which are the model's own guesses."""

    start: Annotated[float, Range(0.0, 1.0), "share of inputs replaced when training begins"] = 0.0
    final: Annotated[float, Range(0.0, 1.0), "share of inputs replaced when training ends"] = 0.5
    schedule: Annotated[
        Literal["linear", "exponential", "inverse_sigmoid"], "how the one becomes the other"
    ] = "linear"
    steepness: Annotated[float, Range(0.01, 100.0), "of exponential and inverse_sigmoid"] = 5.0
    prediction: Annotated[
        Literal["argmax", "sampled", "mixed"],
        "what replaces a token: the likeliest, one drawn, or a mixture of the likeliest",
    ] = "sampled"
    top: Annotated[int, Range(1), "tokens of a mixture"] = 5
    temperature: Annotated[float, Range(0.01, 100.0), "of drawn tokens and of mixtures"] = 1.0
    passes: Annotated[int, Range(1, 64), "passes that predict, each from the one before"] = 1
    through: Annotated[
        Literal["last", "all"], "the passes that learn; all: with mixed predictions only"
    ] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.through == "all" and self.prediction != "mixed":
            raise UserError(
                f"no gradient flows through {self.prediction} predictions; choose prediction = "
                "mixed or through = last."
            )

    def probability(self, progress: float) -> float:
        """The share of inputs that are replaced after this share of the run."""
        share = progress
        if self.schedule == "exponential":
            share = math.expm1(-self.steepness * progress) / math.expm1(-self.steepness)
        elif self.schedule == "inverse_sigmoid":
            # A sigmoid around half of the run, stretched so that it reaches 0 and 1.
            end = math.tanh(self.steepness / 2)
            share = (1 + math.tanh(self.steepness * (progress - 0.5)) / end) / 2
        return self.start + (self.final - self.start) * share

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over target tokens of what the last pass makes of them."""
        predicted_BT = predicted(batch)
        device = predicted_BT.device
        chosen_BT, draws_BT = torch.rand(
            (2, *predicted_BT.shape), generator=rng, dtype=torch.float64
        ).to(device)
        probability = self.probability(batch.progress)
        replaced_BT = predicted_BT & (chosen_BT < probability)
        packed = causal_batch(batch)
        if probability > 0:  # whatever was drawn: processes that share parameters do equal passes
            for _ in range(self.passes):
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.through == "all"):
                    packed = self._replaced(model, batch, packed, replaced_BT, draws_BT)
        nats_M = chain_rule_nats(model, batch, packed)
        total = nats_M.sum()
        return Loss(
            total=total,
            weight=float(len(nats_M)),
            metrics={"nats": float(total.detach()), "replaced": float(replaced_BT.sum())},
        )

    def _replaced(
        self,
        model: TrainableModel,
        batch: TrainingBatch,
        packed: PackedBatch,
        replaced_BT: torch.Tensor,
        draws_BT: torch.Tensor,
    ) -> PackedBatch:
        """A pass over the text with some tokens replaced by what `packed` predicts there."""
        # The row before a place predicts it.
        hidden_MW = model.hidden(packed)[replaced_BT.roll(-1, dims=1).flatten()]
        clean = causal_batch(batch)
        replaced_N = replaced_BT.flatten()
        if self.prediction != "mixed":
            tokens_N = clean.tokens_N.clone()
            tokens_N[replaced_N] = row_costs(model, hidden_MW, self._token, draws_BT[replaced_BT])
            return replace(clean, tokens_N=tokens_N)
        size = min(self.top, model.abilities.vocabulary_size)
        with torch.no_grad():
            ids_MK = row_costs(model, hidden_MW, lambda logits_MV: logits_MV.topk(size).indices)
        weights_MK = row_costs(model, hidden_MW, self._weights, ids_MK)
        ids_NK = clean.tokens_N[:, None].repeat(1, size)
        ids_NK[replaced_N] = ids_MK
        weights_NK = torch.zeros(ids_NK.shape, dtype=weights_MK.dtype, device=ids_NK.device)
        weights_NK[:, 0] = 1.0
        weights_NK = weights_NK.masked_scatter(replaced_N[:, None], weights_MK)
        return replace(clean, mixture=(ids_NK, weights_NK))

    def _token(self, logits_MV: torch.Tensor, draws_M: torch.Tensor) -> torch.Tensor:
        if self.prediction == "argmax":
            return logits_MV.argmax(-1)
        return draw_on_device(logits_MV / self.temperature, draws_M)

    def _weights(self, logits_MV: torch.Tensor, ids_MK: torch.Tensor) -> torch.Tensor:
        return (logits_MV.gather(1, ids_MK) / self.temperature).softmax(-1)
