"""CALM's networks in training, as their objectives see them (`core.vectors`).

Shape suffixes: N packed patches, M some of them, K tokens of a patch, S samples, L width of a
patch's vector, Z width of noise, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from anyorder.core.batch import PackedBatch
from anyorder.core.vectors import PatchAutoencoder, VectorModel
from anyorder.training.network import Trainee


@dataclass(frozen=True, kw_only=True, eq=False)
class CalmTrainee(Trainee):
    """An autoencoder, or a model with one."""

    @property
    def patch_size(self) -> int:
        """K"""
        return self._patches.patch_size

    @property
    def fill_token(self) -> int:
        """Stands behind a text's end in its last patch."""
        return self._patches.fill_token

    @property
    def noise_width(self) -> int:
        """Z"""
        return self._vectors.noise_width

    def posterior(
        self, tokens_MK: torch.Tensor, kept_MK: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation of the patches' vectors, [M, L] each."""
        return self._patches.posterior(tokens_MK, kept_MK)

    def reconstruct(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """Hidden states [M * K, W] of the patches' tokens."""
        return self._patches.reconstruct(vectors_ML)

    def hidden_patches(self, tokens_NK: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Hidden states [N, W] of patches."""
        return self._vectors.hidden_patches(tokens_NK, batch)

    def draw(self, hidden_MW: torch.Tensor, noise_MSZ: torch.Tensor) -> torch.Tensor:
        """Vectors [M, S, L] of the patches after them."""
        return self._vectors.draw(hidden_MW, noise_MSZ)

    @property
    def _patches(self) -> PatchAutoencoder:
        return cast(PatchAutoencoder, self.network)

    @property
    def _vectors(self) -> VectorModel:
        return cast(VectorModel, self.network)
