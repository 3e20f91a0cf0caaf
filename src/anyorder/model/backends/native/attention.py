"""Attention over pages by the kernels, for layers that run on torch otherwise.

Pages are read where they lie, so a token of a long text takes no memory that grows with the text;
torch would gather its keys and values first. Not here: attention with biases (ALiBi, T5), windows
that count from elsewhere, and heads whose widths are no multiple of two registers.

Shape suffixes: N tokens of one group, H query heads, D head width.
"""

from __future__ import annotations

import ctypes

import torch

from anyorder.core.batch import AttentionGroup, KeyValuePool, PackedBatch
from anyorder.model.backends.linear import MOST_ROWS
from anyorder.model.backends.native import NAMES, library
from anyorder.model.backends.native.structures import REGISTER, Group, Layer, Pass, describe
from anyorder.model.backends.sdpa import Pattern


def takes(queries_NHD: torch.Tensor, group: AttentionGroup, pattern: Pattern) -> bool:
    """Can this group be read here? Depends on its shape alone, never on time or load."""
    return (
        group.pages_RP is not None
        and group.window_positions_RQ is None
        and pattern.slopes is None
        and pattern.relative is None
        and not pattern.window_ahead
        and len(queries_NHD) <= MOST_ROWS.get(queries_NHD.dtype, 0)
        and not queries_NHD.shape[2] % REGISTER
        and queries_NHD.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def attend(
    queries_NHD: torch.Tensor,
    group: AttentionGroup,
    batch: PackedBatch,
    pool: KeyValuePool,
    layer: int,
    pattern: Pattern,
) -> torch.Tensor:
    """What the group's tokens read from the pool, [N, H * D]; see `sdpa.attend`."""
    keys, values = pool.pages(layer)
    scales = pool.scales(layer)
    described = Layer(
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        window=pattern.window or 0,
        scale=pattern.scale,
    )
    if scales is not None:
        described.key_scales, described.value_scales = (scale.data_ptr() for scale in scales)
    keep: list[torch.Tensor] = []
    """What the structures point to."""
    read = Group()
    describe(read, group, keep)
    read.first_row = 0
    assert batch.slots_N is not None, "what reads pages has put its own tokens there"
    num_rows, num_heads, width = queries_NHD.shape
    if queries_NHD.stride()[1:] != (width, 1):
        queries_NHD = queries_NHD.contiguous()
    first_row = group.first_row
    described_pass = Pass(
        num_rows=num_rows,
        num_heads=num_heads,
        num_kv_heads=keys.shape[2],
        head_width=width,
        page_size=keys.shape[1],
        num_layers=1,
        num_groups=1,
        num_threads=torch.get_num_threads(),
        slots=batch.slots_N[first_row:].data_ptr(),
        positions=batch.positions_N[first_row:].data_ptr(),
        layers=ctypes.addressof(described),
        groups=ctypes.addressof(read),
    )
    mixed_NA = queries_NHD.new_empty(num_rows, num_heads * width)
    kernels = library()
    assert kernels is not None, "takes() asks for the library"
    function = getattr(kernels, f"anyorder_attention_{NAMES[queries_NHD.dtype]}")
    function(
        ctypes.addressof(described_pass),
        queries_NHD.data_ptr(),
        queries_NHD.stride(0),
        mixed_NA.data_ptr(),
    )
    return mixed_NA
