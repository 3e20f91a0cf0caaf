"""One model of the engine: its network, its pages, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from anyorder.cache.int8_pool import Int8Pool
from anyorder.cache.pool import Pool
from anyorder.cache.store import PagedStore
from anyorder.cache.whole import WholeStore
from anyorder.core.batch import Network, PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.engine.static_passes import Recorder, StaticPasses
from anyorder.model.attention import attends_ragged, attentions
from anyorder.model.backends.cuda_graphs import CudaGraphs
from anyorder.model.drafters.medusa import NetworkWithHeads
from anyorder.model.moe import is_static

PAGE_SIZE = 16
"""Tokens a page. Small enough to waste little, large enough to gather in runs of some KiB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Role:
    """What a role name ("target", "draft", "encoder", ...) stands for."""

    name: str
    network: Network
    abilities: Abilities
    pool: Pool
    store: PagedStore
    attends_ragged: bool = False
    """Is attention one call a layer for all requests of a pass?"""
    has_windows: bool = False
    """Does a layer see only so far?"""
    static: StaticPasses | None = None
    """What repeats passes that were recorded; None: every pass is run."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """The network's final hidden states [N, width] of a pass over the role's pool."""
        if self.static is None:
            return self.network.hidden(batch, self.pool)
        return self.static.hidden(batch)

    @property
    def num_cache_tokens(self) -> int:
        """Positions that the pool holds in all."""
        return self.store.num_pages * PAGE_SIZE


def open_role(
    name: str,
    network: Network,
    abilities: Abilities,
    *,
    num_cache_tokens: int | None,
    cache_dtype: str | None = None,
) -> Role:
    """A role with an empty pool of `num_cache_tokens` positions (None: room for 64 contexts, within
    a quarter of the memory there is now), of the network's type or of "int8"."""
    if cache_dtype not in (None, "int8"):
        raise UserError(
            f"cache_dtype must be int8, got {cache_dtype!r}; without it keys and values are cached "
            "as they are."
        )
    kind = Pool if cache_dtype is None else Int8Pool
    shapes = network.cache_shapes
    if num_cache_tokens is None:
        bytes_per_token = kind.bytes_per_token(shapes, network.dtype)
        affordable = _available_bytes(network) // 4 // bytes_per_token
        num_cache_tokens = min(affordable, 64 * abilities.context_length)
    num_pages = max(1, -(-num_cache_tokens // PAGE_SIZE))
    pool = kind(
        shapes,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        dtype=network.dtype,
        device=network.device,
    )
    make_store = WholeStore if abilities.kind == "encoder" else PagedStore
    store = make_store(pool, num_pages=num_pages, role=name)
    whole = network.base if isinstance(network, NetworkWithHeads) else network
    stack = whole if isinstance(whole, nn.Module) else None
    is_ragged = stack is not None and attends_ragged(stack)
    static = None
    if stack is not None and is_ragged and is_static(stack):
        recorder = recorder_for(network.device)
        static = None if recorder is None else StaticPasses(network, pool, recorder)
    return Role(
        name=name,
        network=network,
        abilities=abilities,
        pool=pool,
        store=store,
        attends_ragged=is_ragged,
        has_windows=stack is not None
        and any(layer.pattern.window is not None for layer in attentions(stack)),
        static=static,
    )


def recorder_for(device: torch.device) -> Recorder | None:
    """What repeats passes there; None: nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


def _available_bytes(network: Network) -> int:
    if network.device.type == "cuda":
        return int(torch.cuda.mem_get_info(network.device)[0])
    import os

    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
