"""Key and value pages of one model, as tensors. Shapes are in `core.batch`'s legend.

Memory is reserved, not touched: the operating system backs a page when it is first written.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch


class Pool:
    """[num_pages + 1, page_size, G, D] keys and values for every layer; the last page is blank."""

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
        self.device = device
        self.blank = num_pages
        """A page that nobody is given. Where requests with few pages are read beside ones with
        many, it stands for the missing ones."""
        self.dtype = dtype
        """What is read."""
        self.keys, self.values = self._reserve(shapes, dtype)
        self._views: dict[int, tuple[torch.Tensor, slice | None]] = {}
        self.clear_page(self.blank)

    def _reserve(
        self, shapes: Seq[tuple[int, ...]], dtype: torch.dtype
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Two tensors for each layer, [num_pages + 1, page_size, *shape]."""
        first = [
            torch.empty(self.blank + 1, self.page_size, *shape, dtype=dtype, device=self.device)
            for shape in shapes
        ]
        return first, [torch.empty_like(tensor) for tensor in first]

    @staticmethod
    def bytes_per_token(shapes: list[tuple[int, int]], dtype: torch.dtype) -> int:
        """What a position of all layers takes."""
        return sum(2 * heads * width for heads, width in shapes) * dtype.itemsize

    def tensors(self) -> list[torch.Tensor]:
        """All that a page has a part of, [num_pages + 1, page_size, ...]."""
        return [*self.keys, *self.values]

    def prepare(self) -> None:
        """A pass begins, with page tables of its own."""
        self._views = {}

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' keys and values of one layer; returns them as they will be read."""
        put(self.keys[layer], slots_N, keys_NGD)
        put(self.values[layer], slots_N, values_NGD)
        return keys_NGD, values_NGD

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, K, G, D] of one layer, K = P * page_size; a view where it can be."""
        return self.gather(self.keys[layer], pages_RP), self.gather(self.values[layer], pages_RP)

    def gather(self, stored: torch.Tensor, pages_RP: torch.Tensor) -> torch.Tensor:
        """[R, K, ...] of one of `tensors`, in order of position."""
        view = self._view(pages_RP)
        if view is not None:
            return stored[view].flatten(0, 1)[None]
        return stored.index_select(0, pages_RP.flatten()).view(
            pages_RP.shape[0], -1, *stored.shape[2:]
        )

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

    def scales(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None: keys and values are stored as they are."""
        return None

    def clear_page(self, page: int) -> None:
        """Zero one page of every layer. Attention multiplies what it does not see by zero, and zero
        times what an earlier owner left there must not be NaN."""
        for tensor in self.tensors():
            tensor[page].zero_()

    def move(self, sources: Seq[int], targets: Seq[int]) -> None:
        """Copy slots of every layer, as if all were read before any is written."""
        source_M = torch.tensor(sources, device=self.device)
        target_M = torch.tensor(targets, device=self.device)
        for tensor in self.tensors():
            put(tensor, target_M, tensor.flatten(0, 1).index_select(0, source_M))

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page of every layer."""
        for tensor in self.tensors():
            tensor[target].copy_(tensor[source])


def put(stored: torch.Tensor, slots_N: torch.Tensor, new: torch.Tensor) -> None:
    """Put what belongs to new tokens into one of a pool's tensors."""
    stored.flatten(0, 1).index_copy_(0, slots_N, new)
