"""Page allocator: a free heap and reference counts. Knows nothing of what the pages hold."""

from __future__ import annotations

import heapq


class OutOfPages(Exception):
    """Every page is held; the caller must release some (preempt) or wait."""


class PageAllocator:
    """Hands out page ids 0..num_pages-1, lowest first.

    Lowest first keeps a lone sequence's pages contiguous, which lets attention read them as a view,
    and keeps untouched memory untouched.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def allocate(self) -> int:
        """A page held once; OutOfPages if there is none."""
        if not self._free:
            raise OutOfPages
        page = heapq.heappop(self._free)
        self._holders[page] = 1
        return page

    def holders(self, page: int) -> int:
        """How many hold the page."""
        return self._holders[page]

    def retain(self, page: int) -> None:
        """Hold a page that somebody holds already."""
        assert self._holders[page] > 0, f"page {page} is free and cannot be shared"
        self._holders[page] += 1

    def release(self, page: int) -> int:
        """Let go of a page; returns how many still hold it."""
        assert self._holders[page] > 0, f"page {page} was released more often than it was held"
        self._holders[page] -= 1
        if self._holders[page] == 0:
            heapq.heappush(self._free, page)
        return self._holders[page]
