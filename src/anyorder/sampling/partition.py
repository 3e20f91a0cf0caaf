"""The log of the summed exponentials of many long rows, for training.

torch's own takes four passes over the rows forwards and three backwards; a softmax is one fused
pass.

Shape suffixes: M rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch


def log_partition(logits_MV: torch.Tensor) -> torch.Tensor:
    """[M]; log of the sum of e^logits of each row, of which one at least is finite."""
    result: torch.Tensor = _LogPartition.apply(logits_MV)  # type: ignore[no-untyped-call]
    return result


class _LogPartition(torch.autograd.Function):
    """Its gradient is the softmax."""

    @staticmethod
    def forward(ctx: Any, logits_MV: torch.Tensor) -> torch.Tensor:
        logprobs_MV = logits_MV.log_softmax(dim=1)
        ctx.save_for_backward(logprobs_MV)
        return logits_MV.amax(dim=1) - logprobs_MV.amax(dim=1)

    @staticmethod
    def backward(ctx: Any, gradient_M: torch.Tensor) -> torch.Tensor:
        (logprobs_MV,) = ctx.saved_tensors
        shares_MV: torch.Tensor = logprobs_MV.exp().mul_(gradient_M[:, None])
        return shares_MV
