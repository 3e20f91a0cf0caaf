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

MaskSchedule = Literal["linear", "cosine", "square", "counts"]
"""counts: no level, but a number of masks: every number is as likely, and so many tokens are chosen
at random. What it estimates is the same, since linear levels make every number of masks equally
likely, none included (RADD, arXiv 2406.03736; LLaDA, arXiv 2502.09992, evaluates so). It scatters
less: no unit is left without a mask, and a token weighs units' length / masks instead of 1 / level,
of which small units have few different ones."""


def draw_masks(
    starts_BT: torch.Tensor,
    candidates_BT: torch.Tensor,
    *,
    schedule: MaskSchedule,
    lowest: float,
    highest: float,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the candidates are masked, bool [B, T], and float32 weights [B, T] of them.

    The sum over masked tokens of weight * cost has as its mean the bound of masked diffusion over
    shares of masks in [lowest, highest]. Units are as in `draw_levels`.
    """
    if schedule == "counts":
        return _draw_counts(starts_BT, candidates_BT, lowest=lowest, highest=highest, rng=rng)
    levels_BT, weights_BT = draw_levels(
        starts_BT, schedule=schedule, lowest=lowest, highest=highest, rng=rng
    )
    draws_BT = torch.rand(candidates_BT.shape, generator=rng).to(candidates_BT.device)
    return candidates_BT & (draws_BT < levels_BT), weights_BT / levels_BT


def _draw_counts(
    starts_BT: torch.Tensor,
    candidates_BT: torch.Tensor,
    *,
    lowest: float,
    highest: float,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    units_BT, num_units = _units(starts_BT.cpu())
    units_N, candidates_N = units_BT.flatten(), candidates_BT.cpu().flatten()
    sizes_U = torch.bincount(units_N[candidates_N], minlength=num_units)
    least_U = (sizes_U * lowest - 1e-9).ceil().clamp(min=1)
    most_U = torch.maximum((sizes_U * highest + 1e-9).floor(), least_U)
    times_U = _times(num_units, rng)
    # Units without a candidate have nothing to choose from, whatever is said here.
    counts_U = (least_U + (times_U * (most_U - least_U + 1)).floor()).clamp(max=most_U).long()

    # In the order of units, candidates first, by chance: the first so many of each are masked.
    chances_N = torch.rand(len(units_N), generator=rng, dtype=torch.float64)
    order_N = (units_N * 2 + ~candidates_N + chances_N).argsort()
    lengths_U = torch.bincount(units_N, minlength=num_units)
    first_U = lengths_U.cumsum(0) - lengths_U
    ranks_N = torch.empty_like(order_N)
    ranks_N[order_N] = torch.arange(len(order_N)) - first_U[units_N[order_N]]
    masked_N = candidates_N & (ranks_N < counts_U[units_N])
    weights_N = (sizes_U / counts_U).float()[units_N]
    device, shape = starts_BT.device, starts_BT.shape
    return masked_N.view(shape).to(device), weights_N.view(shape).to(device)


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
    units_BT, num_units = _units(starts_BT)
    times_U = _times(num_units, rng)
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


def _units(starts_BT: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Which unit each token belongs to, int64 [B, T], and how many there are."""
    units_BT = starts_BT.flatten().cumsum(0).sub(1).view_as(starts_BT)
    return units_BT, int(units_BT[-1, -1]) + 1


def _times(num_units: int, rng: torch.Generator) -> torch.Tensor:
    """float64 [U] in [0, 1), at equal distances."""
    first = torch.rand((), generator=rng, dtype=torch.float64)
    return (first + torch.arange(num_units, dtype=torch.float64) / num_units) % 1
