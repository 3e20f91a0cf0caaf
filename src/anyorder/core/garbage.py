"""Python's garbage collection, out of the way while much is made that stays.

Importing torch and loading a model make some 260,000 objects, none of them garbage. Collections on
the way look through them again and again: half a second of a start. Frozen, they cost later
collections nothing either.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(*, for_good: bool = False) -> Iterator[None]:
    """No collections inside. `for_good`: what exists at the end is never looked through again,
    which suits modules, and nothing that may go."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if collects:
            gc.enable()
