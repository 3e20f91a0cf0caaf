"""Divergences against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anyorder.sampling.divergences import divergence


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 7, generator=rng, dtype=torch.float64) * 2 for _ in range(2))
    return ours, theirs


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_both_directions(temperature: float) -> None:
    ours, theirs = tables()
    p, q = ((table / temperature).log_softmax(-1) for table in (theirs, ours))
    forward = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    reverse = F.kl_div(p, q, log_target=True, reduction="none").sum(-1)
    found = divergence(ours, theirs, "forward", temperature=temperature)
    torch.testing.assert_close(found, forward)
    torch.testing.assert_close(divergence(ours, theirs, temperature=temperature), forward)
    found = divergence(ours, theirs, "reverse", temperature=temperature)
    torch.testing.assert_close(found, reverse)
    assert not torch.allclose(forward, reverse)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_tokens_that_are_not_scored_count_for_nothing(kind: str) -> None:
    ours, theirs = tables()
    some = ours.clone()
    some[:, [1, 4]] = -torch.inf
    some.requires_grad_(True)
    rest = [0, 2, 3, 5, 6]
    found = divergence(some, theirs, kind)  # type: ignore[arg-type]
    expected = divergence(ours[:, rest], theirs[:, rest], kind)  # type: ignore[arg-type]
    torch.testing.assert_close(found.detach(), expected)
    found.sum().backward()
    assert some.grad is not None and some.grad.isfinite().all() and not some.grad[:, [1, 4]].any()
    twin = ours[:, rest].clone().requires_grad_(True)
    divergence(twin, theirs[:, rest], kind).sum().backward()  # type: ignore[arg-type]
    assert twin.grad is not None
    torch.testing.assert_close(some.grad[:, rest], twin.grad)


def test_heads_keep_their_dimension() -> None:
    ours, theirs = (table.view(1, 5, 7) for table in tables())
    assert divergence(ours, theirs).shape == (1, 5)
