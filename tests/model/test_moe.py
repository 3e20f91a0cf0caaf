"""Mixture of experts against a loop over tokens and experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.model.test_attention import CONFIG

from anyorder.model.config import Experts
from anyorder.model.moe import MixtureOfExperts

EXPERTS = Experts(num=6, per_token=2, width=24, normalize=True, shared_width=40)


def make(experts: Experts, dtype: torch.dtype = torch.float32) -> MixtureOfExperts:
    torch.manual_seed(0)
    module = MixtureOfExperts(CONFIG, experts)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


def naive(module: MixtureOfExperts, experts: Experts, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for row, token in enumerate(x):
        shares = torch.softmax(module.router.weight @ token, dim=0)
        chosen = shares.sort(descending=True).indices[: experts.per_token]
        total = shares[chosen].sum() if experts.normalize else 1.0
        for expert in chosen:
            gate, up = (module.experts.gate_up.weight[expert] @ token).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            out[row] += shares[expert] / total * (module.experts.down.weight[expert] @ inner)
        if experts.shared_width:
            gate, up = (module.shared.gate_up.weight @ token).chunk(2)
            shared = module.shared.down.weight @ (torch.nn.functional.silu(gate) * up)
            out[row] += torch.sigmoid(module.shared_gate.weight @ token) * shared
    return out


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shared_width", [0, 40])
@pytest.mark.parametrize("num_tokens", [1, 3, 50])
def test_equals_loop(normalize: bool, shared_width: int, num_tokens: int) -> None:
    """With one token most experts have nothing to do."""
    experts = replace(EXPERTS, normalize=normalize, shared_width=shared_width)
    module = make(experts)
    x = torch.randn(num_tokens, CONFIG.width)
    torch.testing.assert_close(module(x), naive(module, experts, x), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_bfloat16_equals_float32_roughly() -> None:
    x = torch.randn(20, CONFIG.width)
    exact = make(EXPERTS)(x)
    half = make(EXPERTS, torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_gradients_equal_those_of_the_loop() -> None:
    module = make(EXPERTS)
    x = torch.randn(9, CONFIG.width)
    module(x).square().sum().backward()
    ours = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    naive(module, EXPERTS, x).square().sum().backward()
    for gradient, parameter in zip(ours, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-2, rtol=1e-3)
