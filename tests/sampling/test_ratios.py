"""Clean tokens from ratios: against noise put on a known distribution."""

from __future__ import annotations

import math

import pytest
import torch

from anyorder.sampling.ratios import clean_logits

V = 6


def noised(p_V: torch.Tensor, share: float) -> torch.Tensor:
    """By the noise's rates, as the paper has them."""
    rates_VV = torch.full((V, V), 1 / V, dtype=torch.float64) - torch.eye(V, dtype=torch.float64)
    return torch.linalg.matrix_exp(-math.log(1 - share) * rates_VV) @ p_V


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_noise_is_taken_off_again(share: float) -> None:
    rng = torch.Generator().manual_seed(2)
    clean_MV = torch.randn(4, V, dtype=torch.float64, generator=rng).softmax(-1)
    standing = [0, 3, 5, 3]
    rows = []
    for p_V, token in zip(clean_MV, standing, strict=True):
        noisy_V = noised(p_V, share)
        row_V = (noisy_V / noisy_V[token]).log()
        row_V[token] = 7.0  # a network says anything of the standing token itself
        rows.append(row_V)
    shares = [share] * 4
    found = clean_logits(torch.stack(rows), standing, shares).softmax(-1)
    torch.testing.assert_close(found, clean_MV, atol=1e-6, rtol=0)


def test_every_row_has_noise_of_its_own() -> None:
    p_V = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64)
    shares = [0.2, 0.7]
    rows_MV = torch.stack([(noised(p_V, share) / noised(p_V, share)[1]).log() for share in shares])
    found = clean_logits(rows_MV, [1, 1], shares).softmax(-1)
    torch.testing.assert_close(found, p_V.expand(2, -1), atol=1e-6, rtol=0)


def test_less_than_noise_alone_is_impossible() -> None:
    """At a share of a half, noise alone makes each token 1 in 12."""
    noisy_V = torch.tensor([0.5, 0.3, 0.1, 0.04, 0.03, 0.03])
    found = clean_logits((noisy_V / 0.5).log()[None], [0], [0.5]).softmax(-1)[0]
    expected = (noisy_V - 1 / 12).clamp(min=0)
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-6, rtol=0)
    assert (
        found[3:].max() < 1e-20 and clean_logits(noisy_V.log()[None], [0], [0.5]).isfinite().all()
    )


def test_all_noise_is_as_much_as_networks_are_told() -> None:
    rows_MV = torch.zeros(1, V).index_fill(1, torch.tensor(2), 0.5)
    found, most = (clean_logits(rows_MV, [0], [share]) for share in (1.0, 0.999))
    torch.testing.assert_close(found, most)
