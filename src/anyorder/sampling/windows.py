"""Bans of several tokens in a row, where tokens are placed in any order.

Left to right, the last token of a banned sequence is banned. On a canvas each of its tokens is, as
soon as the others stand around the place. A window with an open place bans nothing yet: whoever
fills its last gap is banned from completing it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyorder.sampling.canvas_guide import CanvasGuide


def completes_at(
    prompt: Seq[int], canvas: Seq[int | None], place: int, banned: Seq[tuple[int, ...]]
) -> set[int]:
    """Ids that would complete one of the banned sequences at a place of the canvas."""
    found = set()
    line, at = _around(prompt, canvas, place, max(map(len, banned), default=1))
    for sequence in banned:
        for offset, token in enumerate(sequence):
            window = line[max(0, at - offset) : at - offset + len(sequence)]
            expected: list[int | None] = list(sequence)
            if at < offset or len(window) < len(sequence):
                continue
            window[offset] = token
            if window == expected:
                found.add(token)
    return found


def repeats_at(prompt: Seq[int], canvas: Seq[int | None], place: int, size: int) -> set[int]:
    """Ids at a place of the canvas that would make an n-gram of this size occur twice."""
    whole: list[int | None] = [*prompt, *canvas]
    at = len(prompt) + place
    whole[at] = None
    known = set(_grams(whole, size))
    found = set()
    around: list[tuple[int, list[int | None]]] = []
    for start in range(max(0, at - size + 1), min(at, len(whole) - size) + 1):
        offset = at - start
        window = whole[start : start + size]
        if any(token is None for i, token in enumerate(window) if i != offset):
            continue
        around.append((offset, window))
        for gram in known:
            if all(gram[i] == token for i, token in enumerate(window) if i != offset):
                found.add(gram[offset])
    for (offset, window), (other, like) in itertools.combinations(around, 2):
        token = window[other]  # two windows around the place become the same one
        if token is not None and _filled(window, offset, token) == _filled(like, other, token):
            found.add(token)
    return found


def compatible(
    prompt: Seq[int],
    canvas: Seq[int | None],
    places: Seq[int],
    tokens: Seq[int],
    *,
    banned: Seq[tuple[int, ...]],
    no_repeat_ngram: int,
    guide: CanvasGuide | None = None,
    fresh: bool = True,
    blank: frozenset[int] = frozenset(),
    length: int | None = None,
) -> list[int]:
    """Indices of the tokens that may be placed together, each after those before it. Bans let the
    first pass if they are `fresh`: it was then drawn under them with the canvas as it is. To the
    guide, `blank` tokens are no text, and the text has `length` places, the canvas's if None."""
    board, kept = list(canvas), list[int]()
    guided = None
    if guide is not None and places:
        guided = guide.board(canvas, length or len(canvas), blank)
    for index, (place, token) in enumerate(zip(places, tokens, strict=True)):
        if guided is not None and not guided.allows(place, token):
            continue
        if kept or not fresh:
            if token in completes_at(prompt, board, place, banned):
                continue
            if no_repeat_ngram and token in repeats_at(prompt, board, place, no_repeat_ngram):
                continue
        board[place] = token
        kept.append(index)
        if guided is not None:
            guided.put(place, token)
    return kept


def _around(
    prompt: Seq[int], canvas: Seq[int | None], place: int, reach: int
) -> tuple[list[int | None], int]:
    """What stands within `reach` of a place, and where in it the place is."""
    before: list[int | None] = [*prompt[max(0, len(prompt) - reach) :], *canvas[:place]]
    before = before[max(0, len(before) - reach) :]
    return [*before, None, *canvas[place + 1 : place + 1 + reach]], len(before)


def _filled(window: list[int | None], offset: int, token: int) -> list[int | None]:
    return [*window[:offset], token, *window[offset + 1 :]]


def _grams(line: Seq[int | None], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(len(line) - size + 1):
        window = line[start : start + size]
        gram = tuple(token for token in window if token is not None)
        if len(gram) == size:
            yield gram
