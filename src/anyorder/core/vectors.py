"""Texts as patches of K tokens and as vectors, one a patch (CALM, arXiv 2510.27688).

Each document is cut into patches from its start. The last one is filled up with a token that ends
texts, so that what stands behind a text's end is known; a document that was cut off before its end
loses the tokens that fill no patch.

Shape suffixes: B rows, T tokens each, P patches of a row (padded), K tokens of a patch, N packed
patches, M some of them, S samples, L width of a patch's vector, Z width of noise, W width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from anyorder.core import lookup
from anyorder.core.batch import Network
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Objective, TrainableModel
from anyorder.core.packing import document_positions

if TYPE_CHECKING:
    import torch

    from anyorder.core.batch import PackedBatch


class PatchAutoencoder(TrainableModel, Protocol):
    """Patches to vectors and back, as an objective sees it."""

    @property
    def patch_size(self) -> int:
        """K"""

    @property
    def fill_token(self) -> int:
        """Fills up a text's last patch."""

    def posterior(
        self, tokens_MK: torch.Tensor, kept_MK: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and logarithm of the standard deviation of the patches' vectors, [M, L] each. Tokens
        that are not `kept` are not seen."""

    def reconstruct(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """Hidden states [M * K, W] of the patches' tokens, for `logits`."""


class VectorModel(PatchAutoencoder, Protocol):
    """Predicts the next patch's vector; the autoencoder's part is frozen."""

    @property
    def noise_width(self) -> int:
        """Z"""

    def hidden_patches(self, tokens_NK: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        """Hidden states [N, W] of patches; `batch` is of one row a patch, its tokens are not
        read."""

    def draw(self, hidden_MW: torch.Tensor, noise_MSZ: torch.Tensor) -> torch.Tensor:
        """Vectors [M, S, L] of the patches after some rows of `hidden_patches`."""


class PatchNetwork(Network, Protocol):
    """Such a model as the engine sees it: a place of the cache is a patch, which the network reads
    as its row's conditioning (K token ids). Its rows have no logits, only draws."""

    @property
    def noise_width(self) -> int:
        """Z"""

    def next_patches(self, hidden_MW: torch.Tensor, noise_MSZ: torch.Tensor) -> torch.Tensor:
        """Tokens [M, S, K] of the patches after some rows of `hidden`, one for each noise, which is
        uniform in [-1/2, 1/2)."""


@dataclass(frozen=True, kw_only=True)
class VectorObjective(Objective):
    """Base of the objectives of such networks."""

    network: ClassVar[str] = ""
    """The kind of network that it trains (`Abilities.kind`)."""

    def check(self, abilities: Abilities) -> None:
        """Only this kind has what the loss asks for."""
        if abilities.kind != self.network:
            raise UserError(
                f"{lookup.name_of(self)} trains networks of the kind {self.network}, and "
                f"{abilities.name} is a {abilities.kind}; set [model] kind."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """A batch in patches."""

    tokens_BPK: torch.Tensor
    """int64"""
    documents_BP: torch.Tensor
    """int64; -1 is padding."""
    positions_BP: torch.Tensor
    """int64; how many patches of its document come before each."""
    targets_BP: torch.Tensor
    """bool; patches with a token that may be learnt."""


def cut_patches(
    tokens_BT: torch.Tensor,
    documents_BT: torch.Tensor,
    targets_BT: torch.Tensor,
    *,
    patch_size: int,
    fill_token: int,
    end_tokens: Collection[int],
) -> Patches:
    """The patches of a batch's documents. A row's patches are in order, and some between them may
    be padding, where a document ends without a whole patch."""
    import torch

    num_rows = len(tokens_BT)
    positions_BT = document_positions(documents_BT)
    real_BT = documents_BT >= 0
    patches_BT = ((positions_BT % patch_size == 0) & real_BT).cumsum(1) - 1
    num_patches = int(patches_BT.max().clamp(min=0)) + 1
    # Padding goes to one more place at the end, which is then dropped.
    places_BT = patches_BT * patch_size + positions_BT % patch_size
    places_BT = torch.where(real_BT, places_BT, num_patches * patch_size)

    def scattered(values_BT: torch.Tensor, fill: int) -> torch.Tensor:
        """[B, P, K]"""
        empty = values_BT.new_full((num_rows, num_patches * patch_size + 1), fill)
        filled = empty.scatter(1, places_BT, values_BT)[:, :-1]
        return filled.view(num_rows, num_patches, patch_size)

    documents_BPK = scattered(documents_BT, -1)
    last_BT = torch.ones_like(real_BT)
    last_BT[:, :-1] = documents_BT[:, :-1] != documents_BT[:, 1:]
    ends = torch.tensor([*end_tokens], dtype=tokens_BT.dtype, device=tokens_BT.device)
    ended_BPK = scattered(last_BT & torch.isin(tokens_BT, ends), 0)
    kept_BP = (documents_BPK >= 0).all(2) | ended_BPK.any(2)
    return Patches(
        tokens_BPK=scattered(tokens_BT, fill_token),
        documents_BP=torch.where(kept_BP, documents_BPK[:, :, 0], -1),
        positions_BP=scattered(positions_BT // patch_size, 0)[:, :, 0],
        targets_BP=kept_BP & scattered(targets_BT, 0).any(2),
    )


def normal_divergence(mean_ML: torch.Tensor, log_std_ML: torch.Tensor) -> torch.Tensor:
    """Nats [M, L] by which normal numbers of this mean and spread tell more than standard normal
    ones: the Kullback-Leibler divergence from the prior of a variational autoencoder
    (arXiv 1312.6114, appendix B)."""
    return (mean_ML.square() + (2 * log_std_ML).exp() - 1) / 2 - log_std_ML
