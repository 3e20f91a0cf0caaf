"""Linear layers with weights of 8 or 4 bits.

Weights lie in groups of 32 along the width, each with a float16 scale, and with 4 bits the lowest
value too: w = scale * u + low, as in GGUF's Q8_0 and Q4_1. The default model's file is of the
second kind, so its weights are laid out anew as they are (`put_stored`), without loss. On
processors with VNNI inputs are quantised as well, to 8 bits with a scale for each 32 of a row;
elsewhere, and where gradients are wanted, weights are expanded for every product, which is slow and
exact.

Shape suffixes: N rows, I width of the input, O outputs, G groups (I / 32).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.linear import Linear
from anyorder.model.backends.native import (
    FORMATS,
    NAMES,
    QUANTIZED_LEVEL,
    Matrix,
    level,
    multiply,
    pack,
    unpack,
)

Bits = Literal[8, 4]
GROUP = 32
BLOCK = 16
"""Outputs that lie together, as `native/quantized.inc` reads them."""
_REGISTER = 64
"""Widths are multiples of it: two groups lie together."""
_AT_A_TIME = 64 * BLOCK


class QuantizedLinear(nn.Module):
    """A linear layer for inference only; with weights on the meta device one that `put_stored` is
    to fill."""

    packed: torch.Tensor
    """uint8 [blocks of 16 outputs, I / 64, bytes], laid out as `native/quantized.inc` says."""
    bias: torch.Tensor | None

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, bits: Bits) -> None:
        super().__init__()
        assert not weight_OI.shape[1] % _REGISTER, "fits() was asked"
        self.bits = bits
        self.num_outputs, self.width = weight_OI.shape
        num_factors = 1 if bits == 8 else 2
        num_bytes = 2 * BLOCK * (GROUP * bits // 8 + 2 * num_factors)
        sizes = -(-self.num_outputs // BLOCK), self.width // _REGISTER, num_bytes
        device = "cpu" if weight_OI.is_meta else weight_OI.device
        packed = torch.empty(sizes, dtype=torch.uint8, device=device)
        packed[-1].zero_()  # may lie partly beyond the outputs
        self.register_buffer("packed", packed)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().clone())
        if weight_OI.is_meta:
            return
        # Some outputs at a time: what is needed on the way is several times the result.
        for first, part_OI in enumerate(torch.split(weight_OI.detach(), _AT_A_TIME)):
            if packed.device.type == "cpu" and level() >= QUANTIZED_LEVEL:
                rows_OB = part_OI.float().contiguous().view(torch.uint8)
                self.put_stored(first * _AT_A_TIME, rows_OB, "F32")
            else:
                part = _quantize(part_OI, bits)
                packed[first * _AT_A_TIME // BLOCK :][: len(part)] = part

    @staticmethod
    def fits(weight_OI: torch.Tensor) -> bool:
        """Can weights of this shape be quantised?"""
        return not weight_OI.shape[1] % _REGISTER

    @staticmethod
    def reads(file_format: str) -> bool:
        """Can `put_stored` read rows of this format here?"""
        return file_format in FORMATS and level() >= QUANTIZED_LEVEL

    def put_stored(self, first: int, rows_OB: torch.Tensor, file_format: str) -> None:
        """Take the weights of outputs from `first` on as they lie in a file: rows of bytes."""
        assert rows_OB.stride(1) == 1 and first + len(rows_OB) <= self.num_outputs
        pack(rows_OB, file_format, first, self.matrix())

    def rows(self, outputs_N: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weights [N, I] of some outputs that the bits stand for."""
        if self.bits == 8 and self.packed.device.type == "cpu" and level() >= QUANTIZED_LEVEL:
            return unpack(self.matrix(), outputs_N.contiguous()).to(dtype)
        blocks_N, places_N = outputs_N // BLOCK, outputs_N % BLOCK
        packed = self.packed[blocks_N]  # [N, pairs, bytes]
        num, pairs = packed.shape[:2]
        size = 2 * BLOCK * 2
        num_factors = 1 if self.bits == 8 else 2
        each = torch.arange(len(outputs_N), device=outputs_N.device)
        factors = []
        for start in range(0, num_factors * size, size):
            halves = packed[..., start : start + size].contiguous().view(torch.float16)
            factors.append(halves.view(num, pairs, 2, BLOCK)[each, :, :, places_N].float())
        values = packed[..., num_factors * size :].view(num, pairs, 2, -1, BLOCK, 4)
        values = values[each, :, :, :, places_N]  # [N, pairs, 2, registers, 4]
        if self.bits == 4:
            values = torch.stack((values & 15, values >> 4), dim=-2)
        units = values.flatten(3).float()
        low = factors[0] * -128 if self.bits == 8 else factors[1]
        return (units * factors[0][..., None] + low[..., None]).flatten(1).to(dtype)

    def expanded(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [O, I] that the bits stand for."""
        return self.rows(torch.arange(self.num_outputs, device=self.packed.device), dtype)

    def matrix(self) -> Matrix:
        """As the kernels read it; a view."""
        return Matrix(
            values=self.packed.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            bits=self.bits,
            outputs=self.num_outputs,
            width=self.width,
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


class QuantizedEmbedding(nn.Module):
    """Rows of a head that embeddings are tied to, where a file has them in the head's own bits."""

    def __init__(self, head: QuantizedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = head
        self.dtype = dtype

    @property
    def weight(self) -> torch.Tensor:
        """The whole table [O, I]; made anew each time."""
        return self.head.expanded(self.dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., I]"""
        return self.head.rows(tokens.flatten(), self.dtype).view(*tokens.shape, self.head.width)


def _quantize(weight_OI: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Packed blocks of some outputs."""
    groups_OG32 = weight_OI.float().view(len(weight_OI), -1, GROUP)
    if bits == 8:
        scales_OG = (groups_OG32.abs().amax(-1) / 127.0).half()
        units = (groups_OG32 / _divisor(scales_OG)).round().clamp(-127, 127) + 128
        return _pack(units.to(torch.uint8), [scales_OG], bits)
    low_OG, high_OG = groups_OG32.aminmax(dim=-1)
    lows_OG = low_OG.half()
    scales_OG = ((high_OG - low_OG) / 15.0).half()
    shifted = groups_OG32 - lows_OG.float()[..., None]
    units = (shifted / _divisor(scales_OG)).round().clamp(0, 15)
    return _pack(units.to(torch.uint8), [scales_OG, lows_OG], bits)


def _pack(units_OG32: torch.Tensor, factors: list[torch.Tensor], bits: Bits) -> torch.Tensor:
    """Blocks of 16 outputs (the last one filled up with zeros), two groups at a time: their scales
    and lows, then their values by fours."""
    missing = -len(units_OG32) % BLOCK
    pairs = units_OG32.shape[1] // 2
    units = F.pad(units_OG32, (0, 0, 0, 0, 0, missing)).view(-1, BLOCK, pairs, 2, GROUP // 4, 4)
    units = units.permute(0, 2, 3, 4, 1, 5)  # [blocks, pairs, 2, fours, 16 outputs, 4]
    if bits == 4:
        units = units[:, :, :, 0::2] | units[:, :, :, 1::2] << 4
    parts = []
    for factor_OG in factors:
        halves = F.pad(factor_OG, (0, 0, 0, missing)).view(-1, BLOCK, pairs, 2)
        parts.append(halves.permute(0, 2, 3, 1).flatten(2).contiguous().view(torch.uint8))
    return torch.cat((*parts, units.flatten(2)), dim=-1).contiguous()


def _divisor(scales_OG: torch.Tensor) -> torch.Tensor:
    """Scales to divide by: a group of equal weights has none."""
    scales = scales_OG.float()[..., None]
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def quantize_linears(network: nn.Module, bits: Bits) -> int:
    """Put a quantised layer in the place of every linear layer that fits one; returns how many."""
    return sum(quantize_module(network, name, bits) for name, _ in list(network.named_modules()))


def quantize_module(network: nn.Module, name: str, bits: Bits) -> bool:
    """The same for one module, once it has all its weights; False if it stays as it is."""
    module = network.get_submodule(name)
    if not isinstance(module, Linear) or not QuantizedLinear.fits(module.weight):
        return False
    if any(parameter.is_meta for parameter in module.parameters()):
        return False
    parent, _, attribute = name.rpartition(".")
    quantized = QuantizedLinear(module.weight, module.bias, bits)
    setattr(network.get_submodule(parent), attribute, quantized)
    return True
