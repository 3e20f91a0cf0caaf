"""Rotary position embedding (arXiv 2104.09864) and its ways to reach beyond the trained context.

Layout: half and half, dimension i is paired with i + D/2. Checkpoints that pair neighbours
(GPT-J style, GGUF files of the llama family) have their query and key rows reordered on loading,
which leaves every attention score as it was.

Frequencies are computed in float32, operation by operation as the models were trained, because a
difference of one part in 10^7 turns into a visible angle at position 10^5.

Shape suffixes: N packed tokens, T heads of queries and keys, D head width, F frequencies (half the
rotated width).
"""

from __future__ import annotations

import functools
import math

import torch

from anyorder.model.config import (
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    ProportionalScaling,
    Rope,
    YarnScaling,
)

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine [N, 1, 2F] and signed sine [N, 1, 2F] of every token's angles."""


def rotation(rope: Rope, positions_N: torch.Tensor, dtype: torch.dtype) -> Rotation:
    """What `rotate` needs to turn tokens at these positions."""
    angles_NF = positions_N[:, None] * frequencies(rope, positions_N)
    cos_NF, sin_NF = angles_NF.cos(), angles_NF.sin()
    if isinstance(rope.scaling, YarnScaling) and rope.scaling.magnitude != 1.0:
        cos_NF, sin_NF = cos_NF * rope.scaling.magnitude, sin_NF * rope.scaling.magnitude
    cos = torch.cat((cos_NF, cos_NF), dim=-1)
    sin = torch.cat((-sin_NF, sin_NF), dim=-1)
    return cos[:, None].to(dtype), sin[:, None].to(dtype)


def rotate(heads_NTD: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Queries or keys turned to their positions; dimensions past the rotated width are kept."""
    cos, sin = rotation
    width = cos.shape[-1]
    turned = heads_NTD[..., :width]
    # Rolling by half the width puts each dimension's partner in its place; its sign is in `sin`.
    turned = turned.roll(width // 2, -1).mul_(sin).addcmul_(turned, cos)
    if width == heads_NTD.shape[-1]:
        return turned
    return torch.cat((turned, heads_NTD[..., width:]), dim=-1)


def frequencies(rope: Rope, positions_N: torch.Tensor) -> torch.Tensor:
    """Radians per position, float32 [F], or [N, F] where they depend on the position."""
    device = positions_N.device
    scaling = rope.scaling
    if isinstance(scaling, DynamicScaling):
        return _dynamic(rope, scaling, positions_N)
    base = rope.base
    if isinstance(scaling, NtkScaling):
        base *= scaling.factor ** (rope.width / (rope.width - 2))
    plain_F = 1.0 / base ** _exponents(rope.width, device)
    if isinstance(scaling, LinearScaling):
        return plain_F / scaling.factor
    if isinstance(scaling, YarnScaling):
        return _yarn(rope, scaling, plain_F)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(scaling, plain_F)
    if isinstance(scaling, ProportionalScaling):
        num_turning = int(scaling.share * rope.width // 2)
        return torch.cat((plain_F[:num_turning], torch.zeros_like(plain_F[num_turning:])))
    if isinstance(scaling, FrequencyDivisors):
        return plain_F / _on_device(tuple(scaling.divisors), device)
    return plain_F


@functools.cache
def _on_device(numbers: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Copied there once: a CUDA graph repeats no copies from the host."""
    return torch.tensor(numbers, device=device)


def _exponents(width: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, width, 2, dtype=torch.float32, device=device) / width


def _dynamic(rope: Rope, scaling: DynamicScaling, positions_N: torch.Tensor) -> torch.Tensor:
    length_N = (positions_N + 1).clamp(min=scaling.original_length).double()
    growth_N = scaling.factor * length_N / scaling.original_length - (scaling.factor - 1)
    base_N = rope.base * growth_N ** (rope.width / (rope.width - 2))
    return 1.0 / base_N.float()[:, None] ** _exponents(rope.width, positions_N.device)


def _yarn(rope: Rope, scaling: YarnScaling, plain_F: torch.Tensor) -> torch.Tensor:
    def dimension_of(turns: float) -> float:
        """The dimension whose frequency makes this many turns within the original context."""
        wavelength = scaling.original_length / (turns * 2 * math.pi)
        return rope.width * math.log(wavelength) / (2 * math.log(rope.base))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    if low == high:
        high += 0.001
    steps_F = torch.arange(len(plain_F), dtype=torch.float32, device=plain_F.device)
    interpolated_F = ((steps_F - low) / (high - low)).clamp(0, 1)
    return plain_F / scaling.factor * interpolated_F + plain_F * (1 - interpolated_F)


def _llama3(scaling: Llama3Scaling, plain_F: torch.Tensor) -> torch.Tensor:
    turns_F = scaling.original_length / (2 * math.pi / plain_F)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_F = ((turns_F - low) / (high - low)).clamp(0, 1)
    return (1 - kept_F) * plain_F / scaling.factor + kept_F * plain_F
