"""CALM (arXiv 2510.27688): learn to draw the next patch's vector, by the energy score.

For draws x, x' of the model and y of what is right, 2 E|x - y|^a - E|x - x'|^a is least where x and
y have the same distribution (Gneiting and Raftery 2007; strictly proper for 0 < a < 2, here from 1
on, below which its gradient is not finite). No likelihood is needed: a handful of the model's draws
estimates it without bias. What is right are draws of the frozen autoencoder's vectors for the next
patch.

A document's first patch has nothing before it and is not asked for.

Shape suffixes: B rows, P patches of a row, K tokens of a patch, M predicted patches, S model
samples, Y target samples, L width of a patch's vector, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.objective import Loss, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within
from anyorder.core.vectors import VectorModel, VectorObjective, cut_patches


@dataclass(frozen=True, kw_only=True)
class CalmEnergy(VectorObjective):
    """Draw the vector of every patch from those before it."""

    network: ClassVar[str] = "calm"

    model_samples: Annotated[int, Range(2, 1000), "draws of the model for each patch"] = 8
    target_samples: Annotated[int, Range(1, 10_000), "draws of each patch's right vector"] = 100
    power: Annotated[float, Range(1.0, 1.99), "of the distances"] = 1.0

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over predicted patches. The metrics, each per patch: mean `distance` of the model's
        draws from right vectors, and mean `spread` between its draws, both to the power."""
        network = cast(VectorModel, model)
        patches = cut_patches(
            batch.tokens_BT,
            batch.documents_BT,
            batch.targets_BT,
            patch_size=network.patch_size,
            fill_token=network.fill_token,
            end_tokens=model.abilities.end_tokens,
        )
        documents_BP = patches.documents_BP
        packed = dense_batch(documents_BP, causal_within(documents_BP), patches.positions_BP)
        hidden_NW = network.hidden_patches(patches.tokens_BPK.flatten(0, 1), packed)
        hidden_BPW = hidden_NW.view(*documents_BP.shape, -1)
        predicted_BP = patches.targets_BP[:, 1:] & (documents_BP[:, 1:] == documents_BP[:, :-1])
        hidden_MW = hidden_BPW[:, :-1][predicted_BP]

        shape = len(hidden_MW), self.model_samples, network.noise_width
        noise = torch.rand(shape, generator=rng).to(hidden_MW) - 0.5
        drawn_MSL = network.draw(hidden_MW, noise)
        with torch.no_grad():
            mean_ML, log_std_ML = network.posterior(patches.tokens_BPK[:, 1:][predicted_BP])
            shape = len(mean_ML), self.target_samples, mean_ML.shape[1]
            noise = torch.randn(shape, generator=rng).to(mean_ML)
            right_MYL = mean_ML[:, None] + log_std_ML.exp()[:, None] * noise
        distance_M, spread_M = distances(drawn_MSL.float(), right_MYL.float(), power=self.power)
        distance, spread = distance_M.sum(), spread_M.sum()
        return Loss(
            total=2 * distance - spread,
            weight=float(len(hidden_MW)),
            metrics={"distance": float(distance.detach()), "spread": float(spread.detach())},
        )


def distances(
    drawn_MSL: torch.Tensor, right_MYL: torch.Tensor, *, power: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of |x - y|^power and of |x - x'|^power, [M] each, over all pairs of draws; the energy
    score is twice the first less the second."""
    exact = "donot_use_mm_for_euclid_dist"
    across_MSY = torch.cdist(drawn_MSL, right_MYL, compute_mode=exact)
    num_samples = drawn_MSL.shape[1]
    first, second = torch.triu_indices(num_samples, num_samples, offset=1).unbind()
    within = (drawn_MSL[:, first] - drawn_MSL[:, second]).norm(dim=-1)
    return across_MSY.pow(power).mean((1, 2)), within.pow(power).mean(1)
