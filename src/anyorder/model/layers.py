"""Norms and MLPs of the decoder stack.

Where a tensor is fresh, the next operation works in place: on a CPU, memory that was never touched
costs more than the arithmetic. Gradients stay right: SiLU and GELU do not need their own results
for them (ReLU would; no family gates with it, and torch would complain).

Shape suffixes: N packed tokens, W width of the residual stream, I inner width of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.config import Activation, ModelConfig


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
}


class RmsNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) over the last dimension."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as `x`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


def make_norm(config: ModelConfig, width: int) -> nn.Module:
    """The family's norm over `width` dimensions."""
    if config.norm == "rms":
        return RmsNorm(width, config.norm_epsilon)
    return nn.LayerNorm(width, eps=config.norm_epsilon, bias=config.norm_bias)


class Mlp(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) where it is not gated."""

    def __init__(self, config: ModelConfig, inner: int) -> None:
        super().__init__()
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        if config.gated:
            self.gate_up = Linear(config.width, 2 * inner, bias=config.mlp_bias)
        else:
            self.up = Linear(config.width, inner, bias=config.mlp_bias)
        self.down = Linear(inner, config.width, bias=config.mlp_bias)

    def forward(self, x_NW: torch.Tensor) -> torch.Tensor:
        """Same shape as `x_NW`."""
        if not self.gated:
            inner_NI: torch.Tensor = self.activation(self.up(x_NW))
            return self.down(inner_NI)  # type: ignore[no-any-return]
        gate_NI, up_NI = self.gate_up(x_NW).chunk(2, dim=-1)
        return self.down(self.activation(gate_NI).mul_(up_NI))  # type: ignore[no-any-return]
