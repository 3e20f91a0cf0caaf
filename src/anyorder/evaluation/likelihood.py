"""How likely a model finds a text: exactly by the chain rule, or a bound for diffusion.

A diffusion model's likelihood cannot be computed, but its evidence lower bound can be estimated by
drawing noise. The estimate comes with its standard error: that of the noise, for these very texts,
not of the choice of texts. Bounds and exact values can be compared, with care: a model may be
better than its bound, and the chain rule cannot predict a document's first token (mark it as given,
then both are over the same tokens).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from anyorder.core.errors import UserError
from anyorder.core.objective import Objective, TrainableModel, TrainingBatch
from anyorder.training.objectives.block_diffusion import BlockDiffusion
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.uniform_diffusion import UniformDiffusion


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Negative log-likelihood per target token, or a bound on it."""

    nats: float
    standard_error: float
    """Of `nats`, from drawing noise; 0 where nothing was drawn."""
    num_tokens: int
    exact: bool
    """False: an upper bound on the negative log-likelihood, estimated."""

    @property
    def bits(self) -> float:
        """Bits per token."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats)"""
        return math.exp(self.nats)


def chain_rule(model: TrainableModel, batches: Seq[TrainingBatch]) -> Likelihood:
    """Exact: every target token given those before it in its document."""
    nats, num_tokens = _pass(model, NextToken(), batches, torch.Generator())
    return Likelihood(nats=nats, standard_error=0.0, num_tokens=num_tokens, exact=True)


def bound(
    model: TrainableModel,
    objective: MaskedDiffusion | UniformDiffusion | BlockDiffusion,
    batches: Seq[TrainingBatch],
    *,
    num_draws: int = 16,
    seed: int = 0,
) -> Likelihood:
    """The mean of `num_draws` estimates, each with new noise for all batches.

    Of the objective's options only the block size matters: noise is not clipped, and drawn so that
    the estimates scatter little.
    """
    if num_draws < 2:
        raise UserError(f"a standard error takes at least 2 draws of noise, got {num_draws}.")
    objective.check(model.abilities)
    if isinstance(objective, MaskedDiffusion):
        objective = MaskedDiffusion(schedule="square", min_noise=0.0)
    elif isinstance(objective, BlockDiffusion):
        objective = dataclasses.replace(objective, schedule="square", min_noise=0.0, max_noise=1.0)
    else:  # levels of 0 and 1 themselves are limits that no formula can be evaluated at
        objective = UniformDiffusion(schedule="square", min_noise=1e-5)
    rng = torch.Generator().manual_seed(seed)
    passes = [_pass(model, objective, batches, rng) for _ in range(num_draws)]
    estimates = [nats for nats, _ in passes]
    return Likelihood(
        nats=statistics.fmean(estimates),
        standard_error=statistics.stdev(estimates) / math.sqrt(num_draws),
        num_tokens=passes[0][1],
        exact=False,
    )


@torch.no_grad()
def _pass(
    model: TrainableModel,
    objective: Objective,
    batches: Seq[TrainingBatch],
    rng: torch.Generator,
) -> tuple[float, int]:
    """Nats per target token over all batches, and the number of these."""
    losses = [objective.loss(model, batch, rng) for batch in batches]
    weight = sum(loss.weight for loss in losses)
    if not weight:
        raise UserError(
            f"the {len(batches)} batches have no token to predict; a document's first one is not "
            "predicted by the chain rule."
        )
    return sum(loss.metrics["nats"] for loss in losses) / weight, int(weight)
