"""Adaptive norms: what layers read and add, scaled and shifted by how noisy a canvas is.

DiT (arXiv 2212.09748), as MDLM and its relatives have it for discrete noise: the noise level, as
sines and cosines, becomes a vector by an MLP, and each layer makes of that vector what its norms'
outputs are shifted and scaled by and its branches multiplied with. Networks that do not look at the
level have the same parts and read a level of 0.

Shape suffixes: N packed tokens, or 1 where all are alike, W width of the residual stream, C width
of the vector.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.core.forward import MOST_NOISE
from anyorder.model.backends.linear import Linear
from anyorder.model.config import Modulation

_FREQUENCIES = 128


class NoiseLevel(nn.Module):
    """From the share of noise to the vector that layers read."""

    def __init__(self, config: Modulation) -> None:
        super().__init__()
        self.reads_noise = config.reads_noise
        self.first = Linear(2 * _FREQUENCIES, config.width, bias=True)
        self.second = Linear(config.width, config.width, bias=True)

    def forward(self, noise_N: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """[N, C], or [1, C] where there is no noise to tell apart; `like` has type and place."""
        if noise_N is None or not self.reads_noise:
            noise_N = torch.zeros(1, device=like.device)
        level_N = -torch.log1p(-noise_N.float().clamp(max=MOST_NOISE))
        steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device=like.device)
        angles = level_N[:, None] * torch.exp(-math.log(10_000.0) / _FREQUENCIES * steps)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(like.dtype)
        return F.silu(self.second(F.silu(self.first(waves))))


def modulated(x_NW: torch.Tensor, shift_NW: torch.Tensor, scale_NW: torch.Tensor) -> torch.Tensor:
    """Scaled by 1 + scale, and shifted."""
    return torch.addcmul(shift_NW, x_NW, 1 + scale_NW)
