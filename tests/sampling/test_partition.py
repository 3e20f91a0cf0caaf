"""Against torch's own sum, and its gradient."""

from __future__ import annotations

import torch

from anyorder.sampling.partition import log_partition


def test_it_is_the_log_of_the_sum_and_its_gradient_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(7, 50, generator=generator, dtype=torch.float64) * 20
    logits_MV[2, 0] = logits_MV[5, 7] = -torch.inf
    logits_MV[3, 1:] = -torch.inf
    weights_M = torch.randn(7, generator=generator, dtype=torch.float64)
    found, expected = (logits_MV.clone().requires_grad_() for _ in range(2))
    sums_M = log_partition(found)
    (sums_M * weights_M).sum().backward()
    theirs_M = expected.logsumexp(dim=1)
    (theirs_M * weights_M).sum().backward()
    torch.testing.assert_close(sums_M, theirs_M)
    torch.testing.assert_close(found.grad, expected.grad)


def test_gradients_are_the_numerical_ones() -> None:
    logits_MV = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_partition, logits_MV)


def test_large_numbers_do_not_overflow() -> None:
    logits_MV = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]])
    torch.testing.assert_close(log_partition(logits_MV), logits_MV.logsumexp(1))
