"""Attention by torch's scaled_dot_product_attention: the reference backend, on CPU and CUDA.

Each group of a packed batch is one padded call. Masks are additive and made once per pass and kind
of layer, because torch would otherwise convert a boolean mask again in every layer.

Shape suffixes: N tokens of one group, R requests, Q queries per request, K keys per request,
S tokens of an encoder, H query heads, G key/value heads, J = H / G query heads that share a key
head, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from anyorder.core.batch import AttentionGroup, CrossMemory, KeyValuePool
from anyorder.model.relative import RelativeBias

_MOST_SCORES = 1 << 20
"""Of a head and a sequence, where they are kept for the backward pass."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """How one layer attends, beyond what the group says is visible."""

    scale: float
    window: int | None = None
    """A query sees keys less than this many positions before it."""
    window_ahead: bool = False
    """And of those behind it, less than this many behind it."""
    slopes: tuple[float, ...] | None = None
    """ALiBi: per head, what a score loses for each position of distance."""
    relative: RelativeBias | None = None
    """What is added to a score for its distance, per head."""


def attend(
    queries_NHD: torch.Tensor,
    keys_NGD: torch.Tensor,
    values_NGD: torch.Tensor,
    group: AttentionGroup,
    pool: KeyValuePool | None,
    layer: int,
    pattern: Pattern,
) -> torch.Tensor:
    """What the group's tokens read from their keys, [N, H * D].

    Keys and values are the group's own new tokens, or with `pages_RP` what the pool holds, the new
    ones included.
    """
    pages_RP = group.own_pages_RP
    if pages_RP is None:
        shape = (group.num_requests, group.num_queries, *keys_NGD.shape[1:])
        keys_RKGD, values_RKGD = keys_NGD.view(shape), values_NGD.view(shape)
    else:
        assert pool is not None, "a group with pages needs a pool to read from"
        keys_RKGD, values_RKGD = pool.read(layer, pages_RP)
    keys_RGKD, values_RGKD = keys_RKGD.transpose(1, 2), values_RKGD.transpose(1, 2)
    (num_rows, num_heads, width), num_kv_heads = queries_NHD.shape, keys_RGKD.shape[1]
    mask = _mask(group, pattern, queries_NHD, num_kv_heads, keys_RGKD.shape[2])
    if group.num_queries == 1:
        # Query heads that share a key head stand in as its queries: keys are read once and never
        # repeated (4 times faster than enable_gqa in bf16).
        queries_RGJD = queries_NHD.view(num_rows, num_kv_heads, -1, width)
        mixed = F.scaled_dot_product_attention(
            queries_RGJD, keys_RGKD, values_RGKD, attn_mask=mask, scale=pattern.scale
        )
        return mixed.reshape(num_rows, -1)
    queries_RQHD = queries_NHD.view(group.num_requests, group.num_queries, num_heads, width)
    mixed = _read(
        queries_RQHD.transpose(1, 2), keys_RGKD, values_RGKD, mask, mask is None, pattern.scale
    )
    return mixed.transpose(1, 2).reshape(num_rows, -1)


def attend_memory(
    queries_NHD: torch.Tensor,
    keys_RSGD: torch.Tensor,
    values_RSGD: torch.Tensor,
    group: AttentionGroup,
    memory: CrossMemory,
    scale: float,
) -> torch.Tensor:
    """What the group's tokens read from an encoder's, [N, H * D]."""
    num_rows, num_heads, width = queries_NHD.shape
    queries_RQHD = queries_NHD.view(group.num_requests, group.num_queries, num_heads, width)
    visible_RQS = memory.visible_RQS
    if visible_RQS is not None and queries_NHD.dtype not in memory.masks:
        # Finite, so that padding, which may see nothing, does not turn gradients into NaN.
        hidden = torch.finfo(queries_NHD.dtype).min
        bias = torch.zeros((), dtype=queries_NHD.dtype, device=queries_NHD.device)
        memory.masks[queries_NHD.dtype] = torch.where(visible_RQS[:, None], bias, hidden)
    mixed = _read(
        queries_RQHD.transpose(1, 2),
        keys_RSGD.transpose(1, 2),
        values_RSGD.transpose(1, 2),
        memory.masks.get(queries_NHD.dtype),
        False,
        scale,
    )
    return mixed.transpose(1, 2).reshape(num_rows, -1)


def _read(
    queries_RHQD: torch.Tensor,
    keys_RGKD: torch.Tensor,
    values_RGKD: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """[R, H, Q, D]"""
    num_heads, num_kv_heads = queries_RHQD.shape[1], keys_RGKD.shape[1]
    if not _learns_by_products(queries_RHQD, keys_RGKD):
        return F.scaled_dot_product_attention(
            queries_RHQD,
            keys_RGKD,
            values_RGKD,
            attn_mask=mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=num_heads != num_kv_heads,
        )
    num_rows, _, num_queries, width = queries_RHQD.shape
    num_keys = keys_RGKD.shape[2]
    if is_causal:
        mask = queries_RHQD.new_full((num_queries, num_keys), -torch.inf).triu(1)
    # Query heads that share a key head are rows of one product.
    queries_RGXD = (queries_RHQD * scale).reshape(num_rows, num_kv_heads, -1, width)
    scores_RHQK = (queries_RGXD @ keys_RGKD.transpose(-1, -2)).view(
        num_rows, num_heads, num_queries, num_keys
    )
    if mask is not None:
        scores_RHQK = scores_RHQK + mask
    shares_RHQK = scores_RHQK.softmax(-1, dtype=torch.float32).to(values_RGKD.dtype)
    shares_RGXK = shares_RHQK.view(num_rows, num_kv_heads, -1, num_keys)
    mixed_RHQD: torch.Tensor = (shares_RGXK @ values_RGKD).view(queries_RHQD.shape)
    return mixed_RHQD


def _learns_by_products(queries_RHQD: torch.Tensor, keys_RGKD: torch.Tensor) -> bool:
    """With gradients, in bfloat16 on a CPU: torch's fused attention takes twice as long there as
    the products by themselves, whose scores must not take too much memory."""
    return (
        queries_RHQD.dtype == torch.bfloat16
        and queries_RHQD.device.type == "cpu"
        and torch.is_grad_enabled()
        and queries_RHQD.requires_grad
        and queries_RHQD.shape[2] * keys_RGKD.shape[2] <= _MOST_SCORES
    )


def _mask(
    group: AttentionGroup,
    pattern: Pattern,
    queries_NHD: torch.Tensor,
    num_kv_heads: int,
    num_keys: int,
) -> torch.Tensor | None:
    """What to add to the scores, or None for plain causal attention; from `group.masks` if there.

    [R, 1 or H, Q, K], or [R, 1 or G, 1 or J, K] for a single query."""
    key: object = (pattern.window, pattern.window_ahead, pattern.slopes)
    if pattern.relative is not None:
        key = (pattern.relative, torch.is_grad_enabled())
    if key not in group.masks:
        group.masks[key] = _make_mask(group, pattern, queries_NHD, num_kv_heads, num_keys)
    return group.masks[key]


def _with_past(group: AttentionGroup, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of all keys are seen, [R, Q, K], and where these are, [R, K], of a group that tells of
    its new ones alone."""
    past_R, new_RQK = group.past_R, group.visible_RQK
    assert past_R is not None and new_RQK is not None, "a past goes with a mask"
    key_K = torch.arange(num_keys, device=past_R.device)
    new_RK = key_K - past_R[:, None]
    is_new_RK = (new_RK >= 0) & (new_RK < group.num_queries)
    new_RK = new_RK.clamp(0, group.num_queries - 1)
    index_RQK = new_RK[:, None].expand(-1, group.num_queries, -1)
    seen_RQK = new_RQK.expand(len(past_R), -1, -1).gather(2, index_RQK) & is_new_RK[:, None]
    positions_RK = group.key_positions_RK
    if positions_RK is None:
        positions_RK = torch.where(is_new_RK, group.query_positions_RQ.gather(1, new_RK), key_K)
    return seen_RQK | (key_K < past_R[:, None])[:, None], positions_RK


def _make_mask(
    group: AttentionGroup,
    pattern: Pattern,
    queries_NHD: torch.Tensor,
    num_kv_heads: int,
    num_keys: int,
) -> torch.Tensor | None:
    visible_RQK, key_positions_RK = group.visible_RQK, group.key_positions_RK
    window = pattern.window
    if group.past_R is not None:
        visible_RQK, key_positions_RK = _with_past(group, num_keys)
    if key_positions_RK is None:
        key_positions_RK = torch.arange(num_keys, device=queries_NHD.device)[None]
    if visible_RQK is None and group.pages_RP is not None:
        visible_RQK = key_positions_RK[:, None, :] <= group.query_positions_RQ[:, :, None]
    if visible_RQK is None:
        # Fresh tokens at consecutive positions: no window that holds them all hides anything.
        if window is not None and window >= group.num_queries:
            window = None
        if window is None and pattern.slopes is None and pattern.relative is None:
            return None
        size = (group.num_queries, group.num_queries)
        visible_RQK = torch.ones(1, *size, dtype=torch.bool, device=queries_NHD.device).tril()
    distance_RQK = group.query_positions_RQ[:, :, None] - key_positions_RK[:, None, :]
    if window is not None:
        reach_RQK = distance_RQK
        if group.window_positions_RQ is not None:
            reach_RQK = group.window_positions_RQ[:, :, None] - key_positions_RK[:, None, :]
        visible_RQK = visible_RQK & (reach_RQK < window)
        if pattern.window_ahead:
            visible_RQK = visible_RQK & (distance_RQK > -window)
    bias = torch.zeros((), dtype=queries_NHD.dtype, device=queries_NHD.device)
    if pattern.slopes is not None:
        slopes_H = torch.tensor(pattern.slopes, device=queries_NHD.device)
        bias = (-slopes_H[:, None, None] * distance_RQK[:, None]).to(queries_NHD.dtype)
    if pattern.relative is not None:
        bias = pattern.relative(distance_RQK).to(queries_NHD.dtype)
    mask = torch.where(visible_RQK[:, None], bias, -torch.inf)
    if group.num_queries == 1 and mask.shape[1] > 1:
        mask = mask.view(mask.shape[0], num_kv_heads, -1, mask.shape[-1])
    return mask
