"""Uniform diffusion: replace a random share of the tokens by random others, restore the text.

D3PM with uniform noise (Austin et al., arXiv 2107.03006) in continuous time (UDLM, arXiv
2412.10193). Nothing marks a replaced token, so the model judges all of them, and any token may be
corrected more than once when generating. It needs no mask token, and is not told the time.

The bound compares the rates at which noise is undone. A token x becomes z with probability p(z) =
a [z = x] + (1 - a) / V, where a is the share of tokens kept; q is the same of the predicted
distribution in place of x. Of the rates from z to y, p(y) / p(z) and q(y) / q(z), the bound is

    integral over 1 - a of  1 / (a V)  sum over y of  r_q - r_p + r_p log(r_p / r_q).

Levels of noise closer than `min_noise` to none or all are left out and the rest is averaged.

Shape suffixes: B sequences, T tokens each, M target tokens, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.method import AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_positions, document_starts, same_document
from anyorder.sampling.noise import Schedule, draw_levels
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class UniformDiffusion(Objective):
    """Restore a text of which some tokens were replaced by random ones."""

    attention: ClassVar[AttentionKind] = "bidirectional"

    schedule: Annotated[Schedule, "how often each share of replaced tokens is drawn"] = "linear"
    min_noise: Annotated[
        float, Range(1e-5, 0.4), "smallest share of tokens drawn anew, and of tokens kept"
    ] = 1e-3

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Over weight, an estimate of the bound in nats per target token."""
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        levels_BT, weights_BT = draw_levels(
            document_starts(documents_BT),
            schedule=self.schedule,
            lowest=self.min_noise,
            highest=1 - self.min_noise,
            rng=rng,
        )
        shape, device = tokens_BT.shape, tokens_BT.device
        draws_BT = torch.rand(shape, generator=rng).to(device)
        others_BT = torch.randint(model.abilities.vocabulary_size, shape, generator=rng).to(device)
        targets_BT = batch.targets_BT
        noisy_BT = torch.where(targets_BT & (draws_BT < levels_BT), others_BT, tokens_BT)
        packed = dense_batch(
            noisy_BT, same_document(documents_BT), document_positions(documents_BT)
        )
        nats_M = row_costs(
            model,
            model.hidden(packed)[targets_BT.flatten()],
            _cost,
            tokens_BT[targets_BT],
            noisy_BT[targets_BT],
            levels_BT[targets_BT],
        )
        total = (nats_M * weights_BT[targets_BT]).sum()
        return Loss(total=total, weight=float(len(nats_M)), metrics={"nats": float(total.detach())})


def _cost(
    logits_MV: torch.Tensor, clean_M: torch.Tensor, noisy_M: torch.Tensor, levels_M: torch.Tensor
) -> torch.Tensor:
    """The integrand of the bound at a level of noise, [M].

    With r(y) = p(y) / p(z), the sum over y is 1 / q(z) - 1 / p(z) + (KL(p, q) - log p(z) / q(z)) /
    p(z); and p takes two values only, so KL needs no second table over the vocabulary.
    """
    size = logits_MV.shape[1]
    kept_M, rest_M = 1 - levels_M, levels_M / size
    log_q_MV = (logits_MV.softmax(dim=-1) * kept_M[:, None] + rest_M[:, None]).log()
    log_q_clean_M = log_q_MV.gather(1, clean_M[:, None])[:, 0]
    log_q_noisy_M = log_q_MV.gather(1, noisy_M[:, None])[:, 0]
    p_clean_M = kept_M + rest_M
    p_noisy_M = torch.where(noisy_M == clean_M, p_clean_M, rest_M)
    negative_entropy_M = p_clean_M * p_clean_M.log() + (size - 1) * rest_M * rest_M.log()
    divergence_M = negative_entropy_M - kept_M * log_q_clean_M - rest_M * log_q_MV.sum(dim=-1)
    surprise_M = (divergence_M - p_noisy_M.log() + log_q_noisy_M) / p_noisy_M
    return ((-log_q_noisy_M).exp() - 1 / p_noisy_M + surprise_M) / (size * kept_M)
