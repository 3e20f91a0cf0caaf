"""Which pages sequences have, as a tensor that kernels read: a row for each sequence.

The table stays from pass to pass and only what has changed is written to it, so a token costs
nothing that grows with the text before it. What lies behind a sequence's own pages is the pool's
blank page.
"""

from __future__ import annotations

import heapq

import torch


class PageTable:
    """Rows of page ids."""

    def __init__(self, blank: int, device: torch.device) -> None:
        self._blank = blank
        self._pages_TP = torch.full((8, 16), blank, device=device)
        self._free = list(range(len(self._pages_TP)))
        self._changes: dict[tuple[int, int], int] = {}
        """Pages by row and place that are not in the tensor yet."""

    def open(self) -> int:
        """A row for a sequence."""
        if not self._free:
            num_rows, width = self._pages_TP.shape
            self._free = list(range(num_rows, 2 * num_rows))
            self._grow(2 * num_rows, width)
        return heapq.heappop(self._free)

    def close(self, row: int, num_pages: int) -> None:
        """Give back a row with so many pages."""
        for place in range(num_pages):
            self.clear(row, place)
        heapq.heappush(self._free, row)

    def put(self, row: int, place: int, page: int) -> None:
        """A sequence's page at a place is this one from now on."""
        if place >= self._pages_TP.shape[1]:
            self._grow(len(self._pages_TP), 2 * self._pages_TP.shape[1])
        self._changes[row, place] = page

    def clear(self, row: int, place: int) -> None:
        """A sequence has no page at a place any more."""
        self._changes[row, place] = self._blank

    def tensor(self) -> torch.Tensor:
        """int64 [rows, places], which stays where it is until it has to grow."""
        if self._changes:
            changes = [(*where, page) for where, page in self._changes.items()]
            rows, places, pages = torch.tensor(changes, device=self._pages_TP.device).T
            self._pages_TP[rows, places] = pages
            self._changes.clear()
        return self._pages_TP

    def _grow(self, num_rows: int, width: int) -> None:
        pages_TP = self._pages_TP.new_full((num_rows, width), self._blank)
        old = self._pages_TP
        pages_TP[: old.shape[0], : old.shape[1]] = old
        self._pages_TP = pages_TP
