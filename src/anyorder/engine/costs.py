"""How long passes take on this machine, learnt from the passes that are run.

A method that can choose how many tokens to run at once (a draft's length) asks what they would
cost. Medians of the last few passes by number of tokens; linear between and beyond them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Hashable, Mapping

_SAMPLES = 9
"""Passes remembered per size; old ones were made under another load."""
_LARGEST = 512
"""Larger passes say nothing about decoding."""


class PassCosts:
    """Seconds of passes, by model, depth and number of tokens."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, dict[int, deque[float]]] = {}
        self._latest: dict[Hashable, Mapping[Hashable, int]] = {}

    def record(
        self, role: str, layers: int | None, num_tokens: Mapping[Hashable, int], seconds: float
    ) -> None:
        """A pass of a role's model was run. `num_tokens` says how many tokens each run had."""
        self._latest[role, layers] = num_tokens
        total = sum(num_tokens.values())
        if total <= _LARGEST:
            sizes = self._seconds.setdefault((role, layers), {})
            sizes.setdefault(_size(total), deque(maxlen=_SAMPLES)).append(seconds)

    def seconds(
        self, role: str, layers: int | None, num_tokens: int, *, run: Hashable
    ) -> float | None:
        """A pass in which `run` has so many tokens and the others what they had in the latest one.
        None before there is anything to tell from."""
        latest = self._latest.get((role, layers), {})
        total = num_tokens + sum(latest.values()) - latest.get(run, 0)
        known = sorted(
            (size, statistics.median(sample))
            for size, sample in self._seconds.get((role, layers), {}).items()
        )
        exact = dict(known).get(_size(total))
        if exact is not None:
            return exact
        if len(known) < 2:
            return None
        # The pair around the wanted size, or the nearest two.
        above = next((i for i, (size, _) in enumerate(known) if size > total), len(known) - 1)
        (low, fast), (high, slow) = known[max(above, 1) - 1], known[max(above, 1)]
        estimate = fast + (slow - fast) * (total - low) / (high - low)
        return max(estimate, min(fast, slow))


def _size(num_tokens: int) -> int:
    """Sizes that count as one: exact while small, then within an eighth."""
    grain = 1 << max(0, num_tokens.bit_length() - 4)
    return num_tokens // grain * grain
