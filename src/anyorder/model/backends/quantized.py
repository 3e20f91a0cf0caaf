"""Linear layers with weights of 8 or 4 bits.

Weights lie in groups of 32 along the width, each with a float16 scale, and with 4 bits the lowest
value too: w = scale * u + low, as in GGUF's Q8_0 and Q4_1. The default model's file is of the
second kind, so its weights come through without loss. On processors with VNNI inputs are quantised
as well, to 8 bits with a scale for each 32 of a row; elsewhere, and where gradients are wanted,
weights are expanded for every product, which is slow and exact.

Shape suffixes: N rows, I width of the input, O of the output, G groups (I / 32).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.backends.native import NAMES, QUANTIZED_LEVEL, Matrix, level, multiply

Bits = Literal[8, 4]
GROUP = 32
_REGISTER = 64
"""Widths are multiples of it: what fills a register of 512 bits."""


class QuantizedLinear(nn.Module):
    """A linear layer for inference only."""

    values: torch.Tensor
    """uint8 [O, I], or with 4 bits [O, I / 2]: byte i of a group's 16 has value i below and value
    i + 16 above."""
    scales: torch.Tensor
    """float16 [O, G]"""
    lows: torch.Tensor | None
    """float16 [O, G] with 4 bits; with 8 the lowest value is -128 scales."""
    bias: torch.Tensor | None

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, bits: Bits) -> None:
        super().__init__()
        assert not weight_OI.shape[1] % _REGISTER, "fits() was asked"
        self.bits = bits
        groups_OG32 = weight_OI.detach().float().view(len(weight_OI), -1, GROUP)
        if bits == 8:
            scales_OG = (groups_OG32.abs().amax(-1) / 127.0).half()
            units = (groups_OG32 / _divisor(scales_OG)).round().clamp(-127, 127) + 128
            values, lows_OG = units.to(torch.uint8).flatten(1), None
        else:
            low_OG, high_OG = groups_OG32.aminmax(dim=-1)
            lows_OG = low_OG.half()
            scales_OG = ((high_OG - low_OG) / 15.0).half()
            shifted = groups_OG32 - lows_OG.float()[..., None]
            units = (shifted / _divisor(scales_OG)).round().clamp(0, 15).to(torch.uint8)
            values = (units[..., :16] | units[..., 16:] << 4).flatten(1)
        self.register_buffer("values", values.contiguous())
        self.register_buffer("scales", scales_OG.contiguous())
        self.register_buffer("lows", None if lows_OG is None else lows_OG.contiguous())
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().clone())

    @staticmethod
    def fits(weight_OI: torch.Tensor) -> bool:
        """Can weights of this shape be quantised?"""
        return not weight_OI.shape[1] % _REGISTER

    def expanded(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [O, I] that the bits stand for."""
        groups = self.values.view(*self.scales.shape, -1)
        scales = self.scales.float()[..., None]
        if self.lows is None:
            return ((groups.float() - 128) * scales).flatten(1).to(dtype)
        units = torch.cat((groups & 15, groups >> 4), dim=-1).float()
        return (units * scales + self.lows.float()[..., None]).flatten(1).to(dtype)

    def matrix(self) -> Matrix:
        """As the kernels read it; a view."""
        return Matrix(
            values=self.values.data_ptr(),
            scales=self.scales.data_ptr(),
            lows=None if self.lows is None else self.lows.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            bits=self.bits,
            outputs=self.scales.shape[0],
            width=self.scales.shape[1] * GROUP,
        )

    def forward(self, x_NI: torch.Tensor) -> torch.Tensor:
        """[N, O]"""
        if (
            level() >= QUANTIZED_LEVEL
            and x_NI.dim() == 2
            and x_NI.dtype in NAMES
            and x_NI.device.type == "cpu"
            and not (torch.is_grad_enabled() and x_NI.requires_grad)
            and not torch.compiler.is_compiling()
        ):
            return multiply(self.matrix(), x_NI.contiguous())
        return F.linear(x_NI, self.expanded(x_NI.dtype), self.bias)


def _divisor(scales_OG: torch.Tensor) -> torch.Tensor:
    """Scales to divide by: a group of equal weights has none."""
    scales = scales_OG.float()[..., None]
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def quantize_linears(network: nn.Module, bits: Bits) -> int:
    """Put a quantised layer in the place of every linear layer that fits one; returns how many."""
    count = 0
    for name, module in list(network.named_modules()):
        if not isinstance(module, Linear) or not QuantizedLinear.fits(module.weight):
            continue
        parent, _, attribute = name.rpartition(".")
        quantized = QuantizedLinear(module.weight, module.bias, bits)
        setattr(network.get_submodule(parent), attribute, quantized)
        count += 1
    return count
