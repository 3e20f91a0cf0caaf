"""Restoration by an autoencoder whose every number is known."""

from __future__ import annotations

import math

import pytest
import torch

from anyorder.core.errors import UserError
from anyorder.evaluation.restoration import restoration


class Threshold:
    """Patches of two tokens to two numbers and back: token 5 is +1, others -1, and what is read is
    5 above zero and 0 below. With deviation s a draw of token 5 is wrong once in P(s z < -1)."""

    patch_size = 2
    fill_token = 5

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def posterior(self, tokens_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_ML = torch.where(tokens_MK == 5, 1.0, -1.0)
        return mean_ML, torch.full_like(mean_ML, math.log(self.deviation))

    def tokens(self, vectors_ML: torch.Tensor) -> torch.Tensor:
        return torch.where(vectors_ML > 0, 5, 0)


def test_shares_by_hand() -> None:
    # Six tokens, of which the 3s come back as 0; the two that fill up do not count.
    told: list[tuple[str, int, int]] = []
    found = restoration(
        Threshold(1e-3),
        [[5, 0, 3], [5, 3, 0, 0, 5]],
        batch_size=2,
        progress=lambda *what: told.append(what),
    )
    assert told == [("restoring", 2, 5), ("restoring", 4, 5), ("restoring", 5, 5)]
    assert found.num_tokens == 8
    assert found.from_means == found.from_draws == 6 / 8
    # [5 0] [3 +] [5 3] [0 0] [5 +]
    assert found.whole_patches == 3 / 5
    nats = (1 + 1e-6 - 1) / 2 - math.log(1e-3)
    assert found.nats == pytest.approx(2 * nats, rel=1e-5)


def test_draws_are_as_often_wrong_as_their_noise_says() -> None:
    found = restoration(Threshold(0.8), [[5, 0] * 20_000])
    right = (1 + math.erf(1 / 0.8 / math.sqrt(2))) / 2
    assert found.from_means == 1
    assert found.from_draws == pytest.approx(right, abs=4 * math.sqrt(right * (1 - right) / 40_000))
    assert found.whole_patches == pytest.approx(right**2, abs=0.012)
    assert restoration(Threshold(0.8), [[5, 0] * 20_000], seed=1) != found


def test_what_fills_up_is_not_asked_for() -> None:
    wrong = Threshold(1e-3)
    wrong.fill_token = 3  # would come back as 0
    found = restoration(wrong, [[5]])
    assert found.num_tokens == found.from_draws == found.whole_patches == 1


def test_nothing_to_restore() -> None:
    with pytest.raises(UserError, match="no text to restore"):
        restoration(Threshold(1), [[]])
