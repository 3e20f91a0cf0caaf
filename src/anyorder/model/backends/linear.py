"""Linear layers: torch's, or the package's own kernel for a few rows on a CPU.

Which of the two computes depends on the number of rows alone, never on time or load, so that the
same pass gives the same bits. Below the limit a row's result is the same, bit for bit, whatever
rows it comes with.

Shape suffixes: N rows, I width of the input, O of the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from anyorder.model.backends.native import NAMES, library

_MOST_ROWS = {torch.float32: 128, torch.bfloat16: 32}
"""Rows up to which the kernel is faster (LOG.md has the measurements)."""


class Linear(nn.Linear):
    """`torch.nn.Linear` by the faster of the two."""

    def forward(self, x_NI: torch.Tensor) -> torch.Tensor:
        """[N, O]"""
        return linear(x_NI, self.weight, self.bias)


def linear(
    x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b, as `torch.nn.functional.linear`."""
    if x_NI.dim() == 2 and x_NI.shape[0] <= _MOST_ROWS.get(x_NI.dtype, 0):
        kernel = _kernels().get(x_NI.dtype)
        if kernel is not None and _fits(x_NI, weight_OI):
            num_rows, width = x_NI.shape
            num_outputs = weight_OI.shape[0]
            out_NO = x_NI.new_empty(num_rows, num_outputs)
            kernel(
                out_NO.data_ptr(),
                x_NI.data_ptr(),
                weight_OI.data_ptr(),
                None if bias_O is None else bias_O.data_ptr(),
                num_rows,
                num_outputs,
                width,
                x_NI.stride(0),
                torch.get_num_threads(),
            )
            return out_NO
    return F.linear(x_NI, weight_OI, bias_O)


def _fits(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """No gradient is wanted, and memory lies as the kernel reads it."""
    return (
        x_NI.device.type == "cpu"
        and not (torch.is_grad_enabled() and (weight_OI.requires_grad or x_NI.requires_grad))
        and x_NI.stride(1) == 1
        and weight_OI.dtype == x_NI.dtype
        and weight_OI.is_contiguous()
        and not torch.compiler.is_compiling()
    )


@functools.cache
def _kernels() -> dict[torch.dtype, Callable[..., None]]:
    kernels = library()
    if kernels is None:
        return {}
    return {dtype: getattr(kernels, f"anyorder_linear_{name}") for dtype, name in NAMES.items()}
