"""Prompt lookup against a naive search, and what it saves."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.same_text import assert_same_text
from tests.tiny import tiny_engine

from anyorder.core.drafter import Draft
from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Request
from anyorder.drafters.prompt_lookup import PromptLookup


class Prompted:
    """A request and its sequence, as far as the drafter looks at them."""

    def __init__(self, prompt: list[int], source: list[int]) -> None:
        self.prompt = prompt
        self.memory = Encoded(source) if source else None


class Encoded:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens


def open_session(prompt: list[int], source: list[int] | None = None, **options: int) -> Any:
    anything: Any = Prompted(prompt, source or [])
    return PromptLookup(**options).open(anything, sequence=anything, coupled=True)


def proposal(session: Any, text: list[int], limit: int) -> Draft:
    session.observe(text, features=None, heads=())
    steps: Generator[Any, Any, Draft] = session.propose(text, limit)
    with pytest.raises(StopIteration) as stopped:
        next(steps)
    draft: Draft = stopped.value.value
    return draft


def naive(text: list[int], limit: int, longest: int, shortest: int) -> tuple[int, list[int]]:
    """By definition: the longest n-gram first, its latest earlier occurrence, repeated at need."""
    for size in range(longest, shortest - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if size <= len(text) and text[end - size : end] == text[-size:]:
                followed = text[end:]
                return size, [followed[i % len(followed)] for i in range(limit)]
    return -1, []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 6),
    st.data(),
)
def test_against_a_naive_search(
    text: list[int], num_prompt: int, limit: int, longest: int, shortest: int, data: st.DataObject
) -> None:
    """At every step, whatever the steps; a `shortest` above `longest` counts as `longest`."""
    session = open_session(text[:num_prompt], longest=longest, shortest=shortest)
    size = min(num_prompt, len(text))
    while True:
        draft = proposal(session, text[:size], limit)
        grade, tokens = naive(text[:size], limit, longest, min(shortest, longest))
        assert session.expects() == grade
        assert list(draft.tokens) == tokens
        assert draft.parents is None and not draft.proposals
        if tokens:
            assert draft.grade == grade
        if size == len(text):
            break
        size = data.draw(st.integers(size + 1, len(text)))


@pytest.mark.parametrize("options", [{"longest": 0}, {"longest": 17}, {"shortest": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="must be an integer from 1 to 16"):
        PromptLookup(**options)


@pytest.mark.parametrize("situation", ["together", "preempted"])
def test_writes_the_plain_text(situation: str) -> None:
    options = {"drafter": "prompt_lookup", "length": 5, "adaptive": False}
    assert_same_text("speculative", options, situation)


def test_a_text_that_repeats_itself_takes_few_passes() -> None:
    """Greedy tiny models fall into a loop; the loop goes on after a prompt that is in it."""
    engine = tiny_engine()
    start = Request(prompt=[3, 1, 4, 1, 5], max_new_tokens=150, ignore_end=True)
    fields: dict[str, Any] = {
        "prompt": [*start.prompt, *engine.generate(start).tokens],
        "max_new_tokens": 30,
        "ignore_end": True,
    }
    plain = engine.generate(Request(**fields))
    options = {"drafter": "prompt_lookup", "length": 10, "adaptive": False}
    fast = engine.generate(Request(method="speculative", options=options, **fields))
    assert fast.tokens == plain.tokens
    assert fast.report.num_forward_passes < 30 / 2
    assert fast.report.mean_accepted_length is not None
    assert fast.report.mean_accepted_length > 2


def test_behind_an_encoder_it_looks_into_the_source() -> None:
    source, text = [5, 6, 7, 8, 9, 6, 4], [1, 5, 6]
    session = open_session([1], source)
    assert proposal(session, text, 3).tokens == [7, 8, 9]
    # The text itself is looked into as ever, and its latest occurrence wins.
    assert proposal(session, [*text, 7, 2, 3, 6, 7], 2).tokens == [2, 3]
    assert not proposal(open_session([1]), text, 3).tokens
    whole = [*source, *text, 7, 2, 3, 6]
    grade, expected = naive(whole, 4, 8, 1)
    again = proposal(open_session([1], source), whole[len(source) :], 4)
    assert (again.grade, again.tokens) == (grade, expected)
