"""How long passes take on this machine, learnt from the passes that are run.

A method that can choose how many tokens to run at once (a draft's length) asks what they would
cost. What else the machine does makes single passes late, never early, so low quartiles count; a
pass over more tokens is never cheaper; and a size seen once or twice is doubted where it is far
dearer than its neighbours say. Otherwise one late pass would keep a size from being tried again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping

_SAMPLES = 9
"""Passes remembered per size; old ones were made under another load."""
_TRUSTED = 3
"""So many passes of a size speak for themselves."""
_LATE = 2.0
"""Fewer passes are taken to have been late if they took this many times what is expected."""
_LARGEST = 512
"""Larger passes say nothing about decoding."""


class PassCosts:
    """Seconds of passes, by model, depth and number of tokens."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, dict[int, deque[float]]] = {}
        self._latest: dict[Hashable, Mapping[Hashable, int]] = {}
        self._known: dict[Hashable, dict[int, float]] = {}
        """What `_known` says, until the next pass of that model: many ask for many sizes."""

    def record(
        self, role: str, layers: int | None, num_tokens: Mapping[Hashable, int], seconds: float
    ) -> None:
        """A pass of a role's model was run. `num_tokens` says how many tokens each run had."""
        self._latest[role, layers] = num_tokens
        total = sum(num_tokens.values())
        if total <= _LARGEST:
            sizes = self._seconds.setdefault((role, layers), {})
            sizes.setdefault(_size(total), deque(maxlen=_SAMPLES)).append(seconds)
            self._known.pop((role, layers), None)

    def num_others(self, role: str, layers: int | None, *, run: Hashable) -> int:
        """How many others shared the latest pass, with this run or without it."""
        latest = self._latest.get((role, layers), {})
        return len(latest) - (run in latest)

    def seconds(
        self, role: str, layers: int | None, num_tokens: int, *, run: Hashable
    ) -> float | None:
        """A pass in which `run` has so many tokens and the others what they had in the latest one.
        None before there is anything to tell from."""
        latest = self._latest.get((role, layers), {})
        total = num_tokens + sum(latest.values()) - latest.get(run, 0)
        sizes = self._seconds.get((role, layers), {})
        if (role, layers) not in self._known:
            self._known[role, layers] = _known(sizes)
        known = self._known[role, layers]
        own = known.get(_size(total))
        if own is not None and len(sizes[_size(total)]) >= _TRUSTED:
            return own
        others = [(size, value) for size, value in known.items() if size != _size(total)]
        if len(others) < 2:
            return own
        # The pair around the wanted size, or the nearest two.
        above = next((i for i, (size, _) in enumerate(others) if size > total), len(others) - 1)
        (low, fast), (high, slow) = others[max(above, 1) - 1], others[max(above, 1)]
        estimate = fast + (slow - fast) * max(total - low, 0) / (high - low)
        return estimate if own is None or own > _LATE * estimate else own


def _known(sizes: Mapping[int, deque[float]]) -> dict[int, float]:
    """Seconds by rising size, none more than those of a larger size."""
    known: dict[int, float] = {}
    least = float("inf")
    for size in sorted(sizes, reverse=True):
        sample = sorted(sizes[size])
        least = min(least, sample[(len(sample) - 1) // 4])
        known[size] = least
    return dict(reversed(known.items()))


def _size(num_tokens: int) -> int:
    """Sizes that count as one: exact while small, then within an eighth."""
    grain = 1 << max(0, num_tokens.bit_length() - 4)
    return num_tokens // grain * grain
