"""From ratios of probabilities to clean tokens: what networks of score entropy say (SEDD).

arXiv 2310.16834, with uniform noise. At a place where the noisy token z stands, such a network
tells how much likelier every noisy token y is than z, given all other places. With a share a of
noise, a noisy token has probability (1 - a) p(y) + a / V, where p is the clean token's; so the
ratios, which add up with z's own 1, give p. With it, steps of `uniform_diffusion` are the paper's
analytic ones (Tweedie's formula): the two are the same line, solved for different things.

A network's ratios may fit no p. Tokens that would be less likely than noise alone makes them are
then impossible, as they are in its authors' steps where those come out below 0. The division takes
a noise of at most MOST_NOISE, which is what networks are told.

Shape suffixes: M rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from anyorder.core.forward import MOST_NOISE

if TYPE_CHECKING:
    import torch

_IMPOSSIBLE = 1e-30
"""Where bans leave nothing else, one of these is drawn."""


def clean_logits(
    ratios_MV: torch.Tensor, standing_M: Seq[int], noise_M: Seq[float]
) -> torch.Tensor:
    """Logits [M, V] of the clean tokens, from the logarithms of ratios to the standing ones and the
    shares of noise. What a network says of the ratio of a token to itself is not looked at."""
    import torch

    device, size = ratios_MV.device, ratios_MV.shape[1]
    standing_M1 = torch.tensor(standing_M, device=device)[:, None]
    noise_M1 = torch.tensor(noise_M, device=device)[:, None].clamp(max=MOST_NOISE)
    noisy_MV = ratios_MV.scatter(1, standing_M1, 0.0).softmax(-1)
    return (noisy_MV - noise_M1 / size).clamp(min=_IMPOSSIBLE).log()
