"""Attention of all requests of a pass in one call a layer, on GPUs: causal, windows and any mask.

The kernels (`ragged_kernels`, in Triton) read keys and values where they lie in the pool's pages,
of the network's type or of 8 bits, so nothing is gathered and nothing is padded. Not here: biases
by distance (ALiBi, T5), decoders that read an encoder, and keys that are not where their places say
under a window; all of these run on `sdpa`, group by group.

A row's result does not depend on what it is batched with, nor on how its text was cut into passes:
keys are summed in blocks that begin at multiples of `KEYS` and in stretches of `SPLIT`, whichever
program sums them. Long texts in passes of few rows are spread over the GPU stretch by stretch.

Shape suffixes: N packed tokens, H query heads, G key/value heads, D head width, S stretches.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import torch

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.model.backends.sdpa import Pattern
from anyorder.model.settings import settings

DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32})
"""Of queries, and of what is cached if not 8 bits."""
WIDEST = 256
"""Most numbers a head."""
SPLIT = 512
"""Keys that are summed by themselves, before the sums are added in order."""
KEYS = 64
"""Keys at a time, of `KEY_BYTES` each or less; fewer of larger ones, down to 16: they are held in a
GPU's small shared memory."""
KEY_BYTES = 256
SMALL, LARGE = 16, 64
"""Rows of the matrices that are multiplied: queries times the heads that share a key head."""
MOST_SPREAD_ROWS = 64
"""Passes of more rows fill a GPU without their keys being spread."""


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Do the kernels run there, with these numbers?"""
    runs = device.type == "cuda" or settings().interprets_kernels
    return runs and dtype in DTYPES and _has_triton()


def takes(pattern: Pattern, head_width: int) -> bool:
    """Can a layer that attends like this be read here?"""
    return pattern.slopes is None and pattern.relative is None and head_width <= WIDEST


def attend(
    queries_NHD: torch.Tensor, batch: PackedBatch, pool: KeyValuePool, layer: int, pattern: Pattern
) -> torch.Tensor:
    """What all tokens read from the pool, which holds their own keys and values too; [N, H * D]."""
    # Triton launches on the current one.
    with torch.cuda.device_of(queries_NHD):  # type: ignore[no-untyped-call]
        return _attend(queries_NHD, batch, pool, layer, pattern)


def _attend(
    queries_NHD: torch.Tensor, batch: PackedBatch, pool: KeyValuePool, layer: int, pattern: Pattern
) -> torch.Tensor:
    from anyorder.model.backends import ragged_kernels

    rows, slots_N = batch.ragged, batch.slots_N
    assert rows is not None and slots_N is not None, "what is ragged has put its tokens in the pool"
    keys, values = pool.pages(layer)
    key_scales, value_scales = pool.scales(layer) or (keys, values)
    num_rows, num_heads, width = queries_NHD.shape
    _, page_size, num_kv_heads, _ = keys.shape
    if queries_NHD.stride()[1:] != (width, 1):
        queries_NHD = queries_NHD.contiguous()
    padded_width = max(16, _power_of_two(width))
    sharing = _power_of_two(num_heads // num_kv_heads)
    height = SMALL if rows.most_rows * sharing <= SMALL else LARGE
    num_queries = max(1, height // sharing)
    num_splits = -(-rows.most_keys // SPLIT)
    is_spread = num_splits > 1 and num_rows <= MOST_SPREAD_ROWS
    num_parts = num_splits if is_spread else 1
    mixed_NHD = queries_NHD.new_empty(num_rows, num_heads, width)
    sums, peaks = mixed_NHD, mixed_NHD
    if is_spread:
        sums = mixed_NHD.new_empty(num_parts, num_rows, num_heads, width, dtype=torch.float32)
        peaks = sums.new_empty(num_parts, num_rows, num_heads, 2)
    num_requests = len(rows.requests_R5)
    # A request may begin amid what would be another block of queries: one more for each.
    grid = (num_rows // num_queries + num_requests, num_kv_heads, num_parts)
    ragged_kernels.read[grid](
        queries_NHD,
        keys,
        values,
        key_scales,
        value_scales,
        rows.requests_R5,
        rows.pages_TP,
        slots_N,
        batch.positions_N,
        rows.window_positions_N,
        rows.visible_M,
        mixed_NHD,
        sums,
        peaks,
        num_requests,
        num_rows,
        queries_NHD.stride(0),
        rows.pages_TP.stride(0),
        pattern.scale * math.log2(math.e),
        pattern.window or 0,
        1 if is_spread else num_splits,
        PAGE=page_size,
        HEADS=num_heads,
        KEY_HEADS=num_kv_heads,
        SHARING=sharing,
        WIDTH=width,
        PADDED_WIDTH=padded_width,
        QUERIES=num_queries,
        KEYS=max(16, KEYS * KEY_BYTES // max(KEY_BYTES, padded_width * queries_NHD.itemsize)),
        SPLIT=SPLIT,
        IS_SPREAD=is_spread,
        HAS_WINDOW=pattern.window is not None,
        LOOKS_AHEAD=pattern.window_ahead,
        IS_INT8=keys.dtype == torch.int8,
        WIDENS=settings().interprets_kernels,
    )
    if is_spread:
        ragged_kernels.add_up[(num_rows, num_heads)](
            sums,
            peaks,
            mixed_NHD,
            num_rows,
            num_parts,
            HEADS=num_heads,
            WIDTH=width,
            PADDED_WIDTH=_power_of_two(width),
        )
    return mixed_NHD.flatten(1)


def _power_of_two(number: int) -> int:
    """The least one that is not less."""
    return 1 << (number - 1).bit_length()
