"""Noise levels for training discrete diffusion: which share of its tokens a unit loses.

A unit is what shares one level: a document, or a block of it. The continuous-time bounds of masked
and uniform diffusion are integrals over the level, whatever the schedule that a level is a function
of time by (MDLM, arXiv 2406.07524; "Variational Diffusion Models", arXiv 2107.00630). A schedule is
therefore nothing but a way to draw levels, and comes with the weight that undoes its preference: it
decides how much the estimate scatters, not what it estimates.

Levels of one batch are spread evenly: one number is drawn, and the units' times follow it at equal
distances around the circle. Each unit's time alone is uniform.

Shape suffixes: B rows, T tokens each, U units.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

Schedule = Literal["linear", "cosine", "square"]
"""Level at time t, before it is stretched from [0, 1] to the levels asked for. linear: t (which is
what "log-linear" noise means: the logarithm of the kept share is log(1 - t)). cosine:
sin(pi t / 2), most often high. square: t^2, most often low; the only one whose bound of masked
diffusion has a finite variance down to level 0."""


def draw_levels(
    starts_BT: torch.Tensor,
    *,
    schedule: Schedule,
    lowest: float,
    highest: float,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 levels in [lowest, highest] and weights, [B, T] each, equal within a unit.

    A unit begins where `starts_BT` says so, and with each row. The mean of weight * f(level) over
    the draws is the mean of f over [lowest, highest].
    """
    units_BT = starts_BT.flatten().cumsum(0).sub(1).view_as(starts_BT)
    num_units = int(units_BT[-1, -1]) + 1
    first = torch.rand((), generator=rng, dtype=torch.float64)
    times_U = (first + torch.arange(num_units, dtype=torch.float64) / num_units) % 1
    if schedule == "linear":
        shares_U, weights_U = times_U, torch.ones_like(times_U)
    elif schedule == "cosine":
        angles_U = times_U * math.pi / 2
        shares_U, weights_U = angles_U.sin(), angles_U.cos() * math.pi / 2
    else:
        shares_U, weights_U = times_U.square(), 2 * times_U
    levels_U = lowest + (highest - lowest) * shares_U
    device = starts_BT.device
    return levels_U.float().to(device)[units_BT], weights_U.float().to(device)[units_BT]
