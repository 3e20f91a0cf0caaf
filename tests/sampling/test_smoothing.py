"""Label smoothing against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anyorder.sampling.smoothing import smoothed_nats


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_costs_and_gradients_are_torch_s(smoothing: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    found = smoothed_nats(logits, targets, smoothing=smoothing)
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found[:, 0], expected)
    torch.testing.assert_close(found[:, 1], F.cross_entropy(logits, targets, reduction="none"))
    gradients = [torch.autograd.grad(cost.sum(), logits)[0] for cost in (found[:, 0], expected)]
    torch.testing.assert_close(*gradients)


def test_a_banned_token_is_as_if_it_were_not_there() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    found = smoothed_nats(logits, targets, smoothing=0.2, banned=2)
    rest = [0, 1, 3, 4, 5, 6]
    moved = torch.tensor([rest.index(target) for target in targets.tolist()])
    expected = F.cross_entropy(logits[:, rest], moved, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(found[:, 0], expected)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all() and not gradient[:, 2].any()
