"""One model of the engine: its network, its pages, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from anyorder.cache.pool import Pool
from anyorder.cache.store import PagedStore
from anyorder.cache.whole import WholeStore
from anyorder.core.batch import Network
from anyorder.core.method import Abilities

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

    @property
    def num_cache_tokens(self) -> int:
        """Positions that the pool holds in all."""
        return self.store.num_pages * PAGE_SIZE


def open_role(
    name: str, network: Network, abilities: Abilities, *, num_cache_tokens: int | None
) -> Role:
    """A role with an empty pool of `num_cache_tokens` positions (None: chosen by memory)."""
    shapes = network.cache_shapes
    if num_cache_tokens is None:
        num_cache_tokens = _affordable_tokens(network, abilities)
    num_pages = max(1, -(-num_cache_tokens // PAGE_SIZE))
    pool = Pool(
        shapes,
        num_pages=num_pages,
        page_size=PAGE_SIZE,
        dtype=network.dtype,
        device=network.device,
    )
    kind = WholeStore if abilities.kind == "encoder" else PagedStore
    store = kind(pool, num_pages=num_pages, role=name)
    return Role(name=name, network=network, abilities=abilities, pool=pool, store=store)


def _affordable_tokens(network: Network, abilities: Abilities) -> int:
    """Room for 64 contexts, within a quarter of the memory there is now."""
    bytes_per_token = sum(2 * heads * width for heads, width in network.cache_shapes)
    bytes_per_token *= network.dtype.itemsize
    affordable = _available_bytes(network) // 4 // bytes_per_token
    return min(affordable, 64 * abilities.context_length)


def _available_bytes(network: Network) -> int:
    if network.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(network.device)[0])
    import os

    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
