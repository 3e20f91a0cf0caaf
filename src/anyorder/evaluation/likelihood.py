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
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Objective, TrainableModel, TrainingBatch
from anyorder.training.objectives.block_diffusion import BlockDiffusion
from anyorder.training.objectives.encoder_decoder import EncoderDecoder
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.uniform_diffusion import UniformDiffusion

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, how much there is."""


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

    @property
    def perplexity_error(self) -> float:
        """Standard error of the perplexity, from drawing noise."""
        return self.perplexity * self.standard_error

    def nats_per(self, count: int) -> float:
        """If the same text is counted as so many words, bytes, ... instead of tokens."""
        return self.nats * self.num_tokens / count


def likelihood(
    model: TrainableModel,
    batches: Seq[TrainingBatch],
    objective: Objective | None = None,
    *,
    num_draws: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Likelihood:
    """By what the model was trained with: the chain rule, or a bound."""
    objective = objective or trained_with(model.abilities)
    if isinstance(objective, NextToken | EncoderDecoder):
        return chain_rule(model, batches, progress=progress)
    if not isinstance(objective, MaskedDiffusion | UniformDiffusion | BlockDiffusion):
        raise UserError(
            f"there is no likelihood for {lookup.name_of(objective)}; next_token, encoder_decoder, "
            "masked_diffusion, uniform_diffusion and block_diffusion have one."
        )
    return bound(model, objective, batches, num_draws=num_draws, seed=seed, progress=progress)


def trained_with(abilities: Abilities) -> Objective:
    """The objective under which a model's likelihood is told, by what it can do."""
    if abilities.source_length and "causal" not in abilities.attention:
        raise UserError(
            f"{abilities.name} writes all tokens of a translation at once, and no likelihood of "
            "that is computed here; measure it with --task translation."
        )
    if len(abilities.attention) > 1:
        raise UserError(
            f"{abilities.name} was trained for both kinds of attention; no likelihood of a text "
            "that it writes partly in parallel is computed here; objective next_token tells that "
            "of plain text, left to right."
        )
    if "causal" in abilities.attention:
        return EncoderDecoder() if abilities.source_length else NextToken()
    if abilities.tells_ratios:
        raise UserError(
            f"{abilities.name} tells ratios of probabilities, and the bound of score entropy on a "
            "text's likelihood is not computed here; measure texts that it writes."
        )
    if abilities.mask_token is None:
        return UniformDiffusion()
    if abilities.block_size:
        return in_blocks(abilities)
    return MaskedDiffusion()


def in_blocks(abilities: Abilities, block_size: int | None = None) -> BlockDiffusion:
    """Block diffusion as a model was trained with it, or with blocks of another size."""
    found = BlockDiffusion(clean=abilities.clean_text)
    size = block_size or abilities.block_size or found.block_size
    return dataclasses.replace(found, block_size=size)


def chain_rule(
    model: TrainableModel, batches: Seq[TrainingBatch], *, progress: Progress | None = None
) -> Likelihood:
    """Exact: every target token given those before it in its document, and its source if it has
    one."""
    rng = torch.Generator()
    objective = EncoderDecoder() if model.abilities.source_length else NextToken()
    ((nats, num_tokens),) = _passes(model, objective, batches, rng, 1, progress)
    return Likelihood(nats=nats, standard_error=0.0, num_tokens=num_tokens, exact=True)


def bound(
    model: TrainableModel,
    objective: MaskedDiffusion | UniformDiffusion | BlockDiffusion,
    batches: Seq[TrainingBatch],
    *,
    num_draws: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Likelihood:
    """The mean of `num_draws` estimates, each with new noise for all batches.

    Of the objective's options only the block size matters: noise is not clipped, and drawn so that
    the estimates scatter little.
    """
    if num_draws < 2:
        raise UserError(f"a standard error takes at least 2 draws of noise, got {num_draws}.")
    objective.check(model.abilities)
    if isinstance(objective, MaskedDiffusion):
        objective = MaskedDiffusion(schedule="counts", min_noise=0.0)
    elif isinstance(objective, BlockDiffusion):
        objective = dataclasses.replace(
            objective, schedule="counts", min_noise=0.0, max_noise=1.0, next_token=0.0
        )
    else:  # levels of 0 and 1 themselves are limits that no formula can be evaluated at
        objective = UniformDiffusion(schedule="square", min_noise=1e-5)
    rng = torch.Generator().manual_seed(seed)
    passes = _passes(model, objective, batches, rng, num_draws, progress)
    estimates = [nats for nats, _ in passes]
    return Likelihood(
        nats=statistics.fmean(estimates),
        standard_error=statistics.stdev(estimates) / math.sqrt(num_draws),
        num_tokens=passes[0][1],
        exact=False,
    )


@torch.no_grad()
def _passes(
    model: TrainableModel,
    objective: Objective,
    batches: Seq[TrainingBatch],
    rng: torch.Generator,
    count: int,
    progress: Progress | None,
) -> list[tuple[float, int]]:
    """For each of several passes over all batches: nats per target token, and the number of these.

    Raises UserError if there is none."""
    found = []
    for number in range(count):
        nats = weight = 0.0
        for done, batch in enumerate(batches, 1):
            loss = objective.loss(model, batch, rng)
            nats += loss.metrics["nats"]
            weight += loss.weight
            if progress is not None:
                progress("likelihood", number * len(batches) + done, count * len(batches))
        if not weight:
            raise UserError(
                f"the {len(batches)} batches have no token to predict; a document's first one is "
                "not predicted by the chain rule."
            )
        found.append((nats / weight, int(weight)))
    return found
