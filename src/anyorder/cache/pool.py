"""Key and value pages of one model, as tensors. Shapes are in `core.batch`'s legend.

Memory is reserved, not touched: the operating system backs a page when it is first written.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch


class Pool:
    """[num_pages, page_size, G, D] keys and values for every layer."""

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        self.keys = [
            torch.empty(num_pages, page_size, heads, width, dtype=dtype, device=device)
            for heads, width in shapes
        ]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self._flat = [
            (keys.view(-1, *keys.shape[2:]), values.view(-1, *values.shape[2:]))
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        self._views: dict[int, tuple[torch.Tensor, slice | None]] = {}

    def prepare(self) -> None:
        """A pass begins, with page tables of its own."""
        self._views = {}

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> None:
        """Store the new tokens' keys and values of one layer."""
        keys, values = self._flat[layer]
        keys.index_copy_(0, slots_N, keys_NGD)
        values.index_copy_(0, slots_N, values_NGD)

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, K, G, D] of one layer, K = P * page_size; a view where it can be."""
        keys, values = self.keys[layer], self.values[layer]
        view = self._view(pages_RP)
        if view is not None:
            return keys[view].flatten(0, 1)[None], values[view].flatten(0, 1)[None]
        shape = (pages_RP.shape[0], -1, *keys.shape[2:])
        index = pages_RP.flatten()
        return keys.index_select(0, index).view(shape), values.index_select(0, index).view(shape)

    def _view(self, pages_RP: torch.Tensor) -> slice | None:
        """Pages of a single request that lie one behind the other are read as a view instead of
        being gathered; looked at once, for all layers of a pass."""
        if len(pages_RP) > 1:
            return None
        if id(pages_RP) not in self._views:
            pages = pages_RP[0].tolist()
            in_order = pages == list(range(pages[0], pages[0] + len(pages)))
            view = slice(pages[0], pages[0] + len(pages)) if in_order else None
            self._views[id(pages_RP)] = pages_RP, view  # held, so that no other has its id
        return self._views[id(pages_RP)][1]

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of one layer."""
        return self.keys[layer], self.values[layer]

    def clear_page(self, page: int) -> None:
        """Zero one page of every layer. Attention multiplies what it does not see by zero, and zero
        times what an earlier owner left there must not be NaN."""
        for tensor in (*self.keys, *self.values):
            tensor[page].zero_()

    def move(self, sources: Seq[int], targets: Seq[int]) -> None:
        """Copy slots of every layer, as if all were read before any is written."""
        source_M = torch.tensor(sources, device=self.keys[0].device)
        target_M = torch.tensor(targets, device=self.keys[0].device)
        for pair in self._flat:
            for tensor in pair:
                tensor.index_copy_(0, target_M, tensor.index_select(0, source_M))

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page of every layer."""
        for tensor in (*self.keys, *self.values):
            tensor[target].copy_(tensor[source])
