"""Weights of checkpoints in 8 bits: a tensor of whole numbers and one of scales beside it.

A matrix `X` lies in a safetensors file as int8, and `X_scale`, float16, has its shape but for the
last dimension, which counts the groups that a row is divided into: weight = number * scale of its
group. Groups are of 32 where rows are a multiple of that, so that `backends.quantized` holds the
same numbers in memory without another loss; other rows are one group. There are no zero points.

Shape suffixes: R rows (all dimensions but the last), I width, G groups.
"""

from __future__ import annotations

import torch

GROUP = 32
METHOD = {"quant_method": "anyorder_int8"}
"""`quantization_config` in config.json, so that other programs know that they cannot read it."""
SCALE_SUFFIX = "_scale"
"""Of the name of the tensor that holds another one's scales."""


def shrink(weight_RI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 of the same shape, and float16 scales [R, G]."""
    width = weight_RI.shape[-1]
    length = GROUP if width % GROUP == 0 else width
    groups = weight_RI.detach().float().reshape(*weight_RI.shape[:-1], -1, length)
    scales_RG = (groups.abs().amax(dim=-1) / 127.0).half()
    divisors = torch.where(scales_RG == 0, 1.0, scales_RG.float())[..., None]
    values = (groups / divisors).round().clamp(-127, 127).to(torch.int8)
    return values.view(weight_RI.shape), scales_RG


def expand(values_RI: torch.Tensor, scales_RG: torch.Tensor) -> torch.Tensor:
    """The weights, float32."""
    groups = values_RI.float().view(*scales_RG.shape, -1)
    return (groups * scales_RG.float()[..., None]).view(values_RI.shape)
