"""A deterministic automaton over the bytes of UTF-8 text, made of a pattern.

Thompson's construction (1968) and then that of subsets. Parts of a pattern that go on alike share
their states by construction, so that little would be gained by minimising.

Shape suffixes: S states, B the 256 bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anyorder.core.errors import GuideError
from anyorder.sampling.automata.pattern import (
    Chain,
    Either,
    Letters,
    Listing,
    Pattern,
    Range,
    Repeat,
    byte_ranges,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_STATES = 8_000
"""Of an automaton; its tables and the time to make them grow with it."""
_MAX_NODES = 400_000


@dataclass(frozen=True, kw_only=True, eq=False)
class ByteAutomaton:
    """State 0 is dead, state 1 the start."""

    next_SB: NDArray[np.int32]
    accepting_S: NDArray[np.bool]


def byte_automaton(pattern: Pattern) -> ByteAutomaton:
    """The automaton of a pattern; GuideError if it gets too large."""
    nodes = _Nodes()
    end = nodes.add(pattern, nodes.new())
    closures: dict[int, frozenset[int]] = {}

    def closed(found: Iterable[int]) -> frozenset[int]:
        for node in found:
            if node not in closures:
                closures[node] = nodes.closure(node, end)
        return frozenset().union(*(closures[node] for node in found))

    start = closed([0])
    numbers = {start: 1}
    pending, rows = [start], [np.zeros(256, np.int32)]
    for state in pending:
        row = np.zeros(256, np.int32)
        for (low, high), targets in _split([e for node in state for e in nodes.edges[node]]):
            target = closed(targets)
            if target not in numbers:
                numbers[target] = len(numbers) + 1
                pending.append(target)
                if len(numbers) >= MAX_STATES:
                    raise _too_large()
            row[low : high + 1] = numbers[target]
        rows.append(row)
    accepting_S = np.array([False, *(end in state for state in numbers)])
    return ByteAutomaton(next_SB=np.stack(rows), accepting_S=accepting_S)


def _too_large() -> GuideError:
    return GuideError(
        f"the guide takes more than {MAX_STATES} states, too many for a canvas; simplify it "
        "(shorter counts, fewer alternatives), or use autoregressive."
    )


def _split(edges: list[tuple[int, int, int]]) -> Iterable[tuple[Range, frozenset[int]]]:
    """Ranges of bytes that lead to the same targets."""
    bounds = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
    for low, after in itertools.pairwise(bounds):
        targets = frozenset(target for first, last, target in edges if first <= low <= last)
        if targets:
            yield (low, after - 1), targets


class _Nodes:
    """An automaton of many states at once."""

    def __init__(self) -> None:
        self._free: list[list[int]] = []
        """Where a node leads without a byte."""
        self.edges: list[list[tuple[int, int, int]]] = []
        """(first byte, last byte, node)"""

    def new(self) -> int:
        if len(self.edges) >= _MAX_NODES:
            raise _too_large()
        self._free.append([])
        self.edges.append([])
        return len(self.edges) - 1

    def closure(self, node: int, end: int) -> frozenset[int]:
        """The nodes reached without a byte that matter: with edges, or the end."""
        seen, pending = {node}, [node]
        while pending:
            fresh = [other for other in self._free[pending.pop()] if other not in seen]
            seen.update(fresh)
            pending += fresh
        return frozenset(node for node in seen if self.edges[node] or node == end)

    def add(self, pattern: Pattern, start: int) -> int:
        """Let the pattern begin at a node; returns where it ends."""
        if isinstance(pattern, Chain):
            for part in pattern.parts:
                start = self.add(part, start)
            return start
        if isinstance(pattern, Repeat):
            return self._add_repeat(pattern, start)
        if isinstance(pattern, Listing):
            return self._add_listing(pattern, start)
        end = self.new()
        if isinstance(pattern, Either):
            for option in pattern.options:
                self._link(self.add(option, self._after(start)), end)
        else:
            self._add_letters(pattern, start, end)
        return end

    def _link(self, node: int, other: int) -> None:
        self._free[node].append(other)

    def _after(self, node: int) -> int:
        fresh = self.new()
        self._link(node, fresh)
        return fresh

    def _add_letters(self, pattern: Letters, start: int, end: int) -> None:
        rests: dict[Any, int] = {(): end}
        for low, high in pattern.ranges:
            for sequence in byte_ranges(low, high):
                for place in range(len(sequence) - 1, 0, -1):
                    rest = sequence[place:]
                    if rest not in rests:
                        rests[rest] = self.new()
                        self.edges[rests[rest]].append((*rest[0], rests[rest[1:]]))
                self.edges[start].append((*sequence[0], rests[sequence[1:]]))

    def _add_repeat(self, pattern: Repeat, start: int) -> int:
        for _ in range(pattern.least):
            start = self.add(pattern.part, self._after(start))
        start = self._after(start)
        if pattern.most is None:
            # A node of its own: what leads to `start` must not be led around the loop.
            self._link(self.add(pattern.part, self._after(start)), start)
            return self._after(start)
        end = self.new()
        for _ in range(pattern.most - pattern.least):
            self._link(start, end)
            start = self._after(self.add(pattern.part, start))
        self._link(start, end)
        return end

    def _add_listing(self, pattern: Listing, start: int) -> int:
        empty, begun = self._after(start), self.new()
        for part, required in pattern.items:
            entry, after = self.new(), self.new()
            self._link(empty, entry)
            self._link(self.add(pattern.separator, begun), entry)
            self._link(self.add(part, entry), after)
            still_empty = self.new()
            if not required:
                self._link(empty, still_empty)
                self._link(begun, after)
            empty, begun = still_empty, after
        end = self.new()
        self._link(empty, end)
        self._link(begun, end)
        return end
