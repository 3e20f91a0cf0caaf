"""The structures of layers.h, and a group of a batch as one of them."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from anyorder.core.batch import AttentionGroup
from anyorder.model.backends.native import Matrix

REGISTER = 32
"""Head widths and inner widths are multiples of it: two registers of 16 floats."""


def _structure(name: str, **kinds: str) -> type[ctypes.Structure]:
    """A structure of `layers.h`: by kind of field, their names."""
    types: dict[str, Any] = {
        "matrices": Matrix,
        "pointers": ctypes.c_void_p,
        "numbers": ctypes.c_int64,
        "reals": ctypes.c_double,
    }
    fields = [(field, types[kind.split("_")[0]]) for kind in kinds for field in kinds[kind].split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Layer = _structure(
    "Layer",
    matrices="qkv out gate_up down",
    pointers="attention_norm query_norm key_norm mlp_norm keys values key_scales value_scales",
    numbers="rope window",
    reals="scale",
)
Group = _structure(
    "Group",
    numbers="first_row num_requests num_queries num_keys",
    pointers="pages page_rows visible past key_positions",
    numbers_after="page_stride visible_stride key_position_stride",
)
Turn = _structure("Rotation", pointers="cosines sines", numbers="width")
Pass = _structure(
    "Pass",
    numbers="num_rows width num_heads num_kv_heads head_width mlp_width page_size num_layers "
    "num_groups num_threads activation",
    reals="epsilon",
    pointers="residual slots positions layers groups rotations final_norm",
)


def describe(target: ctypes.Structure, group: AttentionGroup, keep: list[torch.Tensor]) -> None:
    """Fill in a `Group`; `keep` collects the tensors that it points to."""

    def point(tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        keep.append(tensor)
        return tensor.data_ptr()

    positions_RK, visible_RQK = group.key_positions_RK, group.visible_RQK
    if visible_RQK is None:
        positions_RK = None  # causal: neither is read
    else:
        assert positions_RK is not None or group.past_R is not None, "a mask's keys have positions"
        visible_RQK = visible_RQK.contiguous()
        if positions_RK is not None and positions_RK.stride(1) != 1:
            positions_RK = positions_RK.contiguous()
    pages_RP = group.pages_RP
    if pages_RP is not None and pages_RP.stride(1) != 1:
        pages_RP = pages_RP.contiguous()
    fields = {
        "first_row": group.first_row,
        "num_requests": group.num_requests,
        "num_queries": group.num_queries,
        "num_keys": 0 if visible_RQK is None else visible_RQK.shape[2],
        "pages": point(pages_RP),
        "page_rows": point(group.page_rows_R),
        "visible": point(visible_RQK),
        "past": None if visible_RQK is None else point(group.past_R),
        "key_positions": point(positions_RK),
        "page_stride": 0 if pages_RP is None else pages_RP.stride(0),
        "visible_stride": _step(visible_RQK),
        "key_position_stride": _step(positions_RK),
    }
    for name, value in fields.items():
        setattr(target, name, value)


def _step(tensor: torch.Tensor | None) -> int:
    """Elements between requests; none where all have the same."""
    return 0 if tensor is None or len(tensor) == 1 else tensor.stride(0)
