"""Rotary positions beyond what the parity tests see."""

from __future__ import annotations

import pytest
import torch

from anyorder.model.config import (
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    NtkScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from anyorder.model.rotary import frequencies, rotate, rotation

SCALINGS: list[RopeScaling | None] = [
    None,
    LinearScaling(factor=2.0),
    NtkScaling(factor=2.0),
    DynamicScaling(factor=2.0, original_length=16),
    YarnScaling(factor=2.0, original_length=16),
    Llama3Scaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=64
    ),
    FrequencyDivisors(divisors=(1.0, 2.0, 4.0, 8.0)),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
def test_positions_stand_alone(scaling: RopeScaling | None) -> None:
    """A token's rotation does not depend on the tokens that it runs with."""
    rope = Rope(width=8, base=100.0, scaling=scaling)
    positions = torch.tensor([0, 3, 15, 16, 40, 500])
    cos, sin = rotation(rope, positions, torch.float32)
    for row, position in enumerate(positions):
        alone = rotation(rope, position[None], torch.float32)
        assert torch.equal(cos[row], alone[0][0]) and torch.equal(sin[row], alone[1][0])


@pytest.mark.parametrize("scaling", SCALINGS[:3] + SCALINGS[5:], ids=str)
def test_scores_depend_on_the_distance_alone(scaling: RopeScaling | None) -> None:
    rope = Rope(width=8, base=100.0, scaling=scaling)
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64)
    turned = [
        [rotate(x, rotation(rope, torch.tensor([at]), torch.float64)) for x in (query, key)]
        for at in range(12)
    ]
    near = (turned[5][0] * turned[2][1]).sum()
    far = (turned[11][0] * turned[8][1]).sum()
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    assert (near - (turned[5][0] * turned[3][1]).sum()).abs() > 1e-3


def test_rotation_by_definition() -> None:
    """Pairs (i, i + 4) turned by position * base^(-i/4); dimensions past the width stay."""
    x = torch.randn(1, 1, 11, dtype=torch.float64)
    turned = rotate(x, rotation(Rope(width=8, base=16.0), torch.tensor([3]), torch.float64))
    for i in range(4):
        pair = torch.complex(x[0, 0, i], x[0, 0, i + 4])
        pair = pair * torch.exp(1j * torch.tensor(3 * 16.0 ** (-i / 4), dtype=torch.float64))
        torch.testing.assert_close(turned[0, 0, i], pair.real, atol=1e-6, rtol=0)
        torch.testing.assert_close(turned[0, 0, i + 4], pair.imag, atol=1e-6, rtol=0)
    assert torch.equal(turned[..., 8:], x[..., 8:])


def test_ntk_slows_the_lowest_frequency_by_the_factor() -> None:
    """By the definition of NTK-aware interpolation; the highest frequency stays."""
    plain = frequencies(Rope(width=16), torch.zeros(1))
    scaled = frequencies(Rope(width=16, scaling=NtkScaling(factor=4.0)), torch.zeros(1))
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[-1] * 4, plain[-1])


def test_dynamic_equals_ntk_at_twice_the_context() -> None:
    """Position 31 of an original 16 has length 32: a factor of f * 2 - (f - 1)."""
    dynamic = Rope(width=8, scaling=DynamicScaling(factor=3.0, original_length=16))
    inside, edge, outside = frequencies(dynamic, torch.tensor([0, 15, 31]))
    plain = frequencies(Rope(width=8), torch.zeros(1))
    assert torch.equal(inside, plain) and torch.equal(edge, plain)
    ntk = frequencies(Rope(width=8, scaling=NtkScaling(factor=3.0 * 2 - 2)), torch.zeros(1))
    torch.testing.assert_close(outside, ntk)
