"""What comes back from the vectors of an autoencoder of patches (CALM, arXiv 2510.27688).

The number that its paper calls accuracy: the share of tokens that are restored. Nothing is hidden
here, as it is in training, so this is more than the `restored` of a run's metrics. Vectors are
taken twice: their means, and one draw each, which is what a language model learns to predict.

Shape suffixes: M patches, K tokens of a patch, L width of a patch's vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from anyorder.core.errors import UserError
from anyorder.core.vectors import normal_divergence

if TYPE_CHECKING:
    import torch

    from anyorder.evaluation.likelihood import Progress


class Coder(Protocol):
    """Patches to vectors and back; `model.calm_autoencoder.CalmAutoencoder` is one."""

    @property
    def patch_size(self) -> int:
        """K"""

    @property
    def fill_token(self) -> int:
        """Stands behind a text's end in its last patch."""

    def posterior(self, tokens_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation of the patches' vectors, [M, L] each."""

    def tokens(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        """The likeliest tokens [M, K] of some vectors."""


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """Shares are of all tokens, what fills up a text's last patch left out, or of all patches."""

    num_tokens: int
    from_means: float
    from_draws: float
    whole_patches: float
    """Patches of which a draw gives back every token."""
    nats: float
    """That the vector of a patch holds: the mean divergence from a standard normal."""


def restoration(
    coder: Coder,
    documents: Iterable[Sequence[int]],
    *,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Restoration:
    """Measures over all documents; UserError if there is nothing in them. `progress` is told
    "restoring", how many patches are done and how many there are."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    size, fill = coder.patch_size, coder.fill_token
    patches = [
        document[start : start + size]
        for document in documents
        for start in range(0, len(document), size)
    ]
    if not patches:
        raise UserError("there is no text to restore.")
    num_tokens = sum(map(len, patches))
    means = draws = whole = 0
    nats = 0.0
    for start in range(0, len(patches), batch_size):
        some = patches[start : start + batch_size]
        tokens_MK = torch.tensor([[*patch, *[fill] * (size - len(patch))] for patch in some])
        lengths_M = torch.tensor([len(patch) for patch in some])
        filled_MK = torch.arange(size) >= lengths_M[:, None]
        with torch.inference_mode():
            mean_ML, log_std_ML = coder.posterior(tokens_MK)
            noise_ML = torch.randn(mean_ML.shape, generator=rng).to(mean_ML)
            drawn_ML = mean_ML + log_std_ML.exp() * noise_ML
            from_mean_MK = (coder.tokens(mean_ML) == tokens_MK) & ~filled_MK
            from_draw_MK = (coder.tokens(drawn_ML) == tokens_MK) & ~filled_MK
            kl_ML = normal_divergence(mean_ML.float(), log_std_ML.float())
        means += int(from_mean_MK.sum())
        draws += int(from_draw_MK.sum())
        whole += int((from_draw_MK | filled_MK).all(dim=1).sum())
        nats += float(kl_ML.sum(dtype=torch.float64))
        if progress is not None:
            progress("restoring", start + len(some), len(patches))
    return Restoration(
        num_tokens=num_tokens,
        from_means=means / num_tokens,
        from_draws=draws / num_tokens,
        whole_patches=whole / len(patches),
        nats=nats / len(patches),
    )
