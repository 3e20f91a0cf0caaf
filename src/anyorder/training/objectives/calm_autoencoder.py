"""CALM's autoencoder (arXiv 2510.27688): restore patches of K tokens from one noisy vector each.

Cross-entropy of the tokens, and the divergence of the vectors from a standard normal, of which no
dimension pays for its first `kl_floor` nats: so none is given up. Hidden tokens and lost numbers
make the vectors robust to a language model that misses them. What a text's last patch is filled up
with is learnt too.

Shape suffixes: M patches, K tokens of a patch, L width of a patch's vector, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F

from anyorder.core.objective import Loss, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.vectors import (
    PatchAutoencoder,
    VectorObjective,
    cut_patches,
    normal_divergence,
)
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class CalmAutoencoder(VectorObjective):
    """Restore the tokens of patches from vectors."""

    network: ClassVar[str] = "calm_autoencoder"

    kl_weight: Annotated[float, Range(0.0, 100.0), "of the vectors' divergence"] = 1e-3
    kl_floor: Annotated[float, Range(0.0, 100.0), "nats that cost nothing, by dimension"] = 0.5
    token_dropout: Annotated[float, Range(0.0, 0.9), "share of the tokens not seen"] = 0.15
    vector_dropout: Annotated[float, Range(0.0, 0.9), "share of the vectors' numbers lost"] = 0.15

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over patches. The metrics, each per patch: `nats` of its tokens, the share of them
        that is `restored`, and `kl`, the divergence as it is."""
        coder = cast(PatchAutoencoder, model)
        patches = cut_patches(
            batch.tokens_BT,
            batch.documents_BT,
            batch.targets_BT,
            patch_size=coder.patch_size,
            fill_token=coder.fill_token,
            end_tokens=model.abilities.end_tokens,
        )
        tokens_MK = patches.tokens_BPK[patches.targets_BP]
        device = tokens_MK.device
        kept_MK = (torch.rand(tokens_MK.shape, generator=rng) >= self.token_dropout).to(device)
        mean_ML, log_std_ML = coder.posterior(tokens_MK, kept_MK)
        noise_ML = torch.randn(mean_ML.shape, generator=rng).to(mean_ML)
        vectors_ML = mean_ML + log_std_ML.exp() * noise_ML
        lost_ML = (torch.rand(mean_ML.shape, generator=rng) < self.vector_dropout).to(device)
        vectors_ML = vectors_ML.masked_fill(lost_ML, 0.0) / (1 - self.vector_dropout)

        hidden = coder.reconstruct(vectors_ML)
        nats, restored = row_costs(model, hidden, _cost, tokens_MK.flatten()).sum(0).unbind()
        kl_ML = normal_divergence(mean_ML.float(), log_std_ML.float())
        total = nats + self.kl_weight * kl_ML.clamp(min=self.kl_floor).sum()
        metrics = {"nats": nats, "restored": restored / coder.patch_size, "kl": kl_ML.sum()}
        return Loss(
            total=total,
            weight=float(len(tokens_MK)),
            metrics={name: float(value.detach()) for name, value in metrics.items()},
        )


def _cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
    """[M, 2]: nats, and was it right?"""
    nats_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
    right_M = logits_MV.argmax(dim=-1) == targets_M
    return torch.stack((nats_M, right_M.to(nats_M.dtype)), dim=1)
