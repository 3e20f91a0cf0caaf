"""Integers between bounds as a pattern of their decimal digits."""

from __future__ import annotations

from anyorder.sampling.automata.pattern import (
    Either,
    Pattern,
    Repeat,
    chain,
    either,
    letters,
    literal,
    optional,
)

_DIGIT = letters([(48, 57)])
_NATURAL = either([literal("0"), chain(letters([(49, 57)]), Repeat(part=_DIGIT))])


def integers(low: int | None, high: int | None) -> Pattern:
    """The integers from `low` to `high`, each written in the shortest way; None: no bound."""
    if low is None and high is None:
        return chain(optional(literal("-")), _NATURAL)
    if low is not None and high is not None and low > high:
        return Either(options=())
    options: list[Pattern] = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        options.append(chain(literal("-"), _natural(least, None if low is None else -low)))
    if high is None or high >= 0:
        options.append(_natural(max(low or 0, 0), high))
    return either(options)


def _natural(low: int, high: int | None) -> Pattern:
    """The numbers from `low`, not negative, to `high`."""
    options: list[Pattern] = []
    if high is None:
        longer = chain(letters([(49, 57)]), Repeat(part=_DIGIT, least=len(str(low))))
        options.append(longer)
        high = 10 ** len(str(low)) - 1
    for size in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (size - 1) if size > 1 else 0), min(high, 10**size - 1)
        options.append(_between(str(first), str(last)))
    return either(options)


def _between(low: str, high: str) -> Pattern:
    """Numbers of as many digits as both have, leading zeros allowed."""
    if not low:
        return chain()
    free = Repeat(part=_DIGIT, least=len(low) - 1, most=len(low) - 1)
    if low[0] == high[0]:
        return chain(literal(low[0]), _between(low[1:], high[1:]))
    options: list[Pattern] = [
        chain(literal(low[0]), _between(low[1:], "9" * len(low[1:]))),
        chain(literal(high[0]), _between("0" * len(high[1:]), high[1:])),
    ]
    if ord(high[0]) - ord(low[0]) > 1:
        options.append(chain(letters([(ord(low[0]) + 1, ord(high[0]) - 1)]), free))
    return either(options)
