"""The tokens before a row, for the sampling controls that look at them.

Most rows have no such control, and a copy of a long text for each row of each pass would cost more
than drawing from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import overload


class History(Sequence[int]):
    """Tokens that are put together when somebody looks, which must be within the same tick."""

    def __init__(self, gather: Callable[[], list[int]], length: int | None = None) -> None:
        self._gather = gather
        self._length = length
        """Where it can be told without them."""

    @cached_property
    def _tokens(self) -> list[int]:
        return self._gather()

    def __len__(self) -> int:
        return len(self._tokens) if self._length is None else self._length

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._tokens[index]
