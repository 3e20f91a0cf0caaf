"""What outlives a request: things that methods and drafters learn from one text for the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_LARGEST = 64


class Memory:
    """Things by salt and name; the least recently used ones are forgotten."""

    def __init__(self) -> None:
        self._things: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def recall(self, salt: str, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time."""
        key = salt, name
        if key not in self._things:
            self._things[key] = make()
        self._things.move_to_end(key)
        if len(self._things) > _LARGEST:
            self._things.popitem(last=False)
        return self._things[key]
