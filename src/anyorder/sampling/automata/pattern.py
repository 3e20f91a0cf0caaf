"""Regular languages as plain data: letters, one after the other, one of several, repeated.

Letters are sets of code points. Whatever a user writes (regex, choices, JSON Schema) becomes one of
these, and `byte_automaton` makes a machine of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

Range = tuple[int, int]
"""First and last code point (or byte)."""
LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_LENGTHS = (0x7F, 0x7FF, 0xFFFF, LAST)
"""The last code point of one, two, three and four bytes."""


@dataclass(frozen=True, kw_only=True)
class Letters:
    """One of these code points."""

    ranges: tuple[Range, ...]
    """Rising, apart from each other, without surrogates."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One part after the other."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True, kw_only=True)
class Either:
    """One of several; of none, nothing matches."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """The same part, so many times."""

    part: Pattern
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Parts in order with a separator between any two, of which some may be left out."""

    items: tuple[tuple[Pattern, bool], ...]
    """(part, must it be there?)"""
    separator: Pattern


Pattern = Letters | Chain | Either | Repeat | Listing
EMPTY = Chain(parts=())


def chain(*parts: Pattern) -> Chain:
    """One after the other."""
    return Chain(parts=parts)


def either(options: Iterable[Pattern]) -> Either:
    """One of them."""
    return Either(options=tuple(options))


def optional(part: Pattern) -> Repeat:
    """It or nothing."""
    return Repeat(part=part, most=1)


def letters(ranges: Iterable[Range]) -> Letters:
    """Code points, given as ranges in any order."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return Letters(ranges=tuple(_without_surrogates(merged)))


def any_of(text: str) -> Letters:
    """One of these letters."""
    return letters((ord(letter), ord(letter)) for letter in text)


def none_of(ranges: Iterable[Range]) -> Letters:
    """Every code point that is not among these."""
    gaps: list[Range] = []
    first = 0
    for low, high in letters([*ranges, _SURROGATES]).ranges:
        if low > first:
            gaps.append((first, low - 1))
        first = high + 1
    return letters([*gaps, *([(first, LAST)] if first <= LAST else [])])


def literal(text: str) -> Chain:
    """Exactly this text."""
    return chain(*(any_of(letter) for letter in text))


def _without_surrogates(ranges: Seq[Range]) -> Iterator[Range]:
    first, last = _SURROGATES
    for low, high in ranges:
        if low < first:
            yield low, min(high, first - 1)
        if high > last:
            yield max(low, last + 1), high


def byte_ranges(low: int, high: int) -> Iterator[tuple[Range, ...]]:
    """The UTF-8 forms of a range without surrogates: sequences of ranges of bytes, such that all
    bytes of a sequence may be chosen independently."""
    for last in _LENGTHS:
        if low <= last < high:
            yield from byte_ranges(low, last)
            low = last + 1
    num_bytes = next(count for count, last in enumerate(_LENGTHS, 1) if high <= last)
    for count in range(1, num_bytes):
        mask = (1 << 6 * count) - 1
        if low & ~mask == high & ~mask:
            continue
        if low & mask:
            yield from byte_ranges(low, low | mask)
            yield from byte_ranges((low | mask) + 1, high)
            return
        if high & mask != mask:
            yield from byte_ranges(low, (high & ~mask) - 1)
            yield from byte_ranges(high & ~mask, high)
            return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
