"""Bans of several tokens in a row at places filled in any order, against looking at everything."""

from __future__ import annotations

import itertools
import random

import pytest

from anyorder.sampling.windows import compatible, completes_at, repeats_at


def grams(line: list[int | None], size: int) -> list[tuple[int | None, ...]]:
    windows = [tuple(line[i : i + size]) for i in range(len(line) - size + 1)]
    return [window for window in windows if None not in window]


@pytest.mark.parametrize("seed", range(200))
def test_equals_trying_every_token(seed: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 4))]
    canvas = [rng.choice([None, 0, 1, 2]) for _ in range(6)]
    place, size = rng.randrange(6), rng.randrange(1, 4)
    canvas[place] = None
    banned = tuple(
        tuple(rng.randrange(3) for _ in range(rng.randrange(1, 4))) for _ in range(rng.randrange(3))
    )
    before: list[int | None] = [*prompt, *canvas]
    repeating, completing = set(), set()
    for token in range(3):
        after = list(before)
        after[len(prompt) + place] = token
        known = grams(before, size)
        fresh = grams(after, size)
        for gram in known:
            fresh.remove(gram)
        if any(gram in known for gram in fresh) or len(set(fresh)) < len(fresh):
            repeating.add(token)
        for sequence in banned:
            old = grams(before, len(sequence)).count(sequence)
            if grams(after, len(sequence)).count(sequence) > old:
                completing.add(token)
    assert repeats_at(prompt, canvas, place, size) == repeating
    assert completes_at(prompt, canvas, place, banned) == completing


@pytest.mark.parametrize("seed", range(50))
def test_compatible_tokens_break_no_rule_together(seed: int) -> None:
    rng = random.Random(seed)
    canvas: list[int | None] = [None] * 8
    banned = ((0, 1), (2, 2, 0), (1, 2))
    places = rng.sample(range(8), 8)
    tokens = [rng.randrange(3) for _ in places]
    kept = compatible([1], canvas, places, tokens, banned=banned, no_repeat_ngram=0)
    assert kept[0] == 0
    for index in kept:
        canvas[places[index]] = tokens[index]
    if tokens[0] not in completes_at([1], [None] * 8, places[0], banned):
        line: list[int | None] = [1, *canvas]
        assert not [gram for size in (2, 3) for gram in grams(line, size) if gram in banned]
    free = [i for i in range(8) if i not in kept]
    for index in free:
        trial = list(canvas)
        trial[places[index]] = tokens[index]
        assert any(gram in banned for size in (2, 3) for gram in grams([1, *trial], size)), (
            "left out without a reason"
        )


def test_orders_of_the_same_tokens_keep_as_much_as_they_can() -> None:
    for order in itertools.permutations(range(3)):
        tokens = [0, 1, 2]
        kept = compatible(
            [5],
            [None] * 3,
            order,
            [tokens[place] for place in order],
            banned=((0, 1),),
            no_repeat_ngram=0,
        )
        assert len(kept) == 2
