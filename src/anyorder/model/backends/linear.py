"""Linear layers: torch's, or on a CPU the package's own kernel.

The kernel's result for a row is the same, bit for bit, whatever rows it comes with. Only where
there is AMX do passes of many rows in bfloat16 run on torch, several times as fast; there the
number of rows decides, never time or load.

Shape suffixes: N rows, I width of the input, O of the output.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.native import library, multiply, plain_matrix

MOST_ROWS = {
    torch.float32: sys.maxsize,
    # Tiles of AMX multiply 16 rows as fast as one.
    torch.bfloat16: 16 if torch.cpu._is_amx_tile_supported() else sys.maxsize,
}
"""Rows up to which the kernels compute (LOG.md has the measurements)."""
PLAIN = (torch.Tensor, nn.Parameter)
"""Types of tensors that lie in memory as they say: not those that are shared among processes."""


class Linear(nn.Linear):
    """`torch.nn.Linear` by the faster of the two."""

    def forward(self, x_NI: torch.Tensor) -> torch.Tensor:
        """[N, O]"""
        return linear(x_NI, self.weight, self.bias)


def linear(
    x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b, as `torch.nn.functional.linear`."""
    is_ours = x_NI.dim() == 2 and 0 < x_NI.shape[0] <= MOST_ROWS.get(x_NI.dtype, 0)
    if is_ours and _fits(x_NI, weight_OI) and library() is not None:
        return multiply(plain_matrix(weight_OI, bias_O), x_NI)
    return F.linear(x_NI, weight_OI, bias_O)


def _fits(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """No gradient is wanted, and memory lies as the kernel reads it."""
    return (
        type(x_NI) is torch.Tensor
        and type(weight_OI) in PLAIN
        and x_NI.device.type == "cpu"
        and not (torch.is_grad_enabled() and (weight_OI.requires_grad or x_NI.requires_grad))
        and x_NI.stride(1) == 1
        and weight_OI.dtype == x_NI.dtype
        and weight_OI.is_contiguous()
        and not torch.compiler.is_compiling()
    )
