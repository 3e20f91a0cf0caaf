"""Guides on canvases: what may stand at a place is what some text that is allowed has there."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch

from anyorder.core.errors import GuideError
from anyorder.core.request import Guide
from anyorder.sampling.automata.byte_automaton import byte_automaton
from anyorder.sampling.automata.regex import regex_pattern
from anyorder.sampling.automata.token_automaton import token_automaton
from anyorder.sampling.automata.vocabulary import vocabulary
from anyorder.sampling.canvas_guide import CanvasGuide, CanvasGuideCompiler
from anyorder.sampling.processors import unpack_bits
from anyorder.sampling.windows import compatible

TOKENS = [b"a", b"b", b"ab", b"ba", b"b", b"", b""]
"""Two tokens of equal text; the last two are none."""
END, OTHER = 5, 6
LENGTH = 4


def guide(regex: str, **changes) -> CanvasGuide:
    automaton = token_automaton(byte_automaton(regex_pattern(regex)), vocabulary(TOKENS))
    return CanvasGuide(automaton, "regex", **{"end_tokens": frozenset({END}), **changes})


def valid(regex: str, text, *, ends=frozenset({END}), never=frozenset(), first_end=0) -> bool:
    """Is the canvas allowed, by the definition in words?"""
    if ends:
        size = next((place for place, token in enumerate(text) if token in ends), len(text))
        if size < len(text) and size < first_end:
            return False
        if any(token not in ends for token in text[size:]):
            return False
        words = text[:size]
    else:
        # Over where it is complete and cannot go on.
        for size in range(len(text) + 1):
            whole = spelled(text[:size])
            if whole is not None and re.fullmatch(regex, whole) and not can_go_on(regex, whole):
                if size < len(text) and size < first_end:
                    return False
                return not never.intersection(text[:size])
        words = text
    whole = spelled(words)
    if whole is None or never.intersection(words):
        return False
    return re.fullmatch(regex, whole) is not None


def spelled(tokens) -> str | None:
    if any(not TOKENS[token] for token in tokens):
        return None
    return b"".join(TOKENS[token] for token in tokens).decode()


def can_go_on(regex: str, text: str) -> bool:
    return any(
        re.fullmatch(regex, text + "".join(more))
        for size in range(1, 7)
        for more in itertools.product("ab", repeat=size)
    )


def masked(compiled: CanvasGuide, text, place: int, length: int = LENGTH) -> set[int]:
    words = torch.full((1,), -7, dtype=torch.int32)
    compiled.fill_mask(text, place, length, words)
    return set(unpack_bits(words[None], 32)[0].nonzero()[:, 0].tolist())


CASES = [
    ("(ab)*", {}),
    ("a|b|abba", {}),
    ("a{3,7}b?", {}),
    ("[ab]*", {"first_end": 3}),
    ("[ab]{2}|b{5}", {"first_end": 2}),
    ("ab?", {"end_tokens": frozenset()}),
    ("(ab)+|aab", {"end_tokens": frozenset(), "first_end": 2}),
    ("(a|b)+", {"never": frozenset({0, 3})}),
    ("[ab]{1,9}", {"end_tokens": frozenset({END, 1})}),
]


@pytest.mark.parametrize(("regex", "changes"), CASES)
def test_every_place_of_every_canvas(regex, changes):
    compiled = guide(regex, **changes)
    known = {"ends" if name == "end_tokens" else name: value for name, value in changes.items()}
    texts = [
        text
        for text in itertools.product(range(len(TOKENS)), repeat=LENGTH)
        if valid(regex, text, **known)
    ]
    assert texts
    rng = random.Random(0)
    for _ in range(150):
        whole = rng.choice(texts)
        board = [token if rng.random() < 0.45 else None for token in whole]
        fitting = [t for t in texts if all(b in (None, a) for a, b in zip(t, board, strict=True))]
        place = rng.randrange(LENGTH)
        if board[place] is not None:  # what stands there is no matter
            open_board = [None if at == place else token for at, token in enumerate(board)]
            fitting = [
                t for t in texts if all(b in (None, a) for a, b in zip(t, open_board, strict=True))
            ]
        expected = {text[place] for text in fitting}
        found = masked(compiled, board, place)
        assert found & set(range(len(TOKENS))) == expected, (board, place)
        # The end of the canvas may be left out.
        cut = LENGTH
        while cut and board[cut - 1] is None:
            cut -= 1
        assert masked(compiled, board[:cut], place) == found


@pytest.mark.parametrize(("regex", "changes"), CASES)
def test_tokens_placed_together_leave_a_text(regex, changes):
    """Each token was allowed alone; whatever is kept can be completed, and nothing is left out in
    vain."""
    compiled = guide(regex, **changes)
    known = {"ends" if name == "end_tokens" else name: value for name, value in changes.items()}
    texts = [
        text
        for text in itertools.product(range(len(TOKENS)), repeat=LENGTH)
        if valid(regex, text, **known)
    ]
    rng, num_dropped = random.Random(1), 0
    for _ in range(80):
        board = [token if rng.random() < 0.2 else None for token in rng.choice(texts)]
        free = [place for place in range(LENGTH) if board[place] is None]
        places = rng.sample(free, min(3, len(free)))
        tokens = [rng.choice(sorted(masked(compiled, board, place) & set(range(7)))) for place in
                  places]  # fmt: skip
        kept = compatible([], board, places, tokens, banned=(), no_repeat_ngram=0, guide=compiled)
        assert kept[:1] == [0][: len(places)]
        expected = []
        for index, (place, token) in enumerate(zip(places, tokens, strict=True)):
            tried = list(board)
            tried[place] = token
            if any(all(b in (None, a) for a, b in zip(t, tried, strict=True)) for t in texts):
                board = tried
                expected.append(index)
        assert kept == expected
        num_dropped += len(kept) < len(places)
    assert num_dropped or regex not in ("(ab)*", "a|b|abba", "a{3,7}b?")


def test_complete():
    compiled = guide("ab|abba")
    assert not compiled.complete([])
    assert not compiled.complete([2])  # "abba" goes on
    assert compiled.complete([2, 3]) and compiled.complete([0, 1, 3])
    assert not compiled.complete([2, 2]) and not compiled.complete([2, 3, 0])
    assert compiled.complete([0, 4, 3])  # another token of the same text


def test_canvases_that_are_refused():
    none = [None] * 3
    guide("a{3}").check(none)
    with pytest.raises(GuideError, match=r"shortest text that the regex allows has 5 tokens, and"):
        guide("a{5}").check(none)
    guide("(ab){3}").check(none)
    guide("a{5}", end_tokens=frozenset({END})).check([None] * 6)
    with pytest.raises(GuideError, match="the regex matches no text of this model's tokens"):
        guide("a{2}", never=frozenset({0, 2, 3})).check(none)
    with pytest.raises(GuideError, match="the regex matches no text"):
        guide("").check(none)
    with pytest.raises(GuideError, match="the regex allows no text of 3 to 3 tokens"):
        guide("a|b", first_end=3).check(none)
    with pytest.raises(GuideError, match="the regex allows no text of 0 to 3 tokens"):
        guide("a{2}|a{4}", end_tokens=frozenset()).check(none)
    guide("a*b").check([None, 0, None])
    with pytest.raises(
        GuideError,
        match="the canvas contradicts the regex: no text of 3 tokens that it allows has token 0 at "
        "place 2, with the fixed ones before it",
    ):
        guide("a*b").check([None, 0, 0])
    with pytest.raises(GuideError, match="has token 6 at place 0"):
        guide("a*b").check([OTHER, None, None])


def test_guides_that_are_refused(tokenizer):
    compiler = CanvasGuideCompiler(tokenizer.to_str())
    for wrong, what in (
        (Guide.lark('start: "a"'), "a lark grammar may nest without end and cannot guide a canvas"),
        (Guide.regex("a" * (2**18 + 1)), "the regex has 262145 characters; at most 262144"),
        (Guide.choices(["a"] * 10_001), "there are 10001 choices; at most 10000"),
        (Guide.json_schema({"kind": "x"}), "keyword 'kind' at # is not supported"),
    ):
        with pytest.raises(GuideError, match=re.escape(what)) as caught:
            compiler.compile(wrong, end_tokens=frozenset({0}))
        assert "\n" not in str(caught.value)


def test_automata_are_kept(tokenizer):
    compiler = CanvasGuideCompiler(tokenizer.to_str())
    for number in range(12):
        compiler.compile(Guide.regex("a" * (number + 1)), end_tokens=frozenset({0}))
    again = compiler.compile(Guide.regex("a" * 12), end_tokens=frozenset({0}))
    assert again.complete(tokenizer.encode("a" * 12).ids)
    assert len(compiler._automata) == 8
