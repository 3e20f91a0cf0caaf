"""The suffix automaton against a naive search, its memory, and who sees what of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.same_text import assert_same_text
from tests.tiny import VOCABULARY, tiny_engine

from anyorder.core.drafter import Draft
from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Request
from anyorder.drafters import suffix_automaton
from anyorder.drafters.suffix_automaton import SuffixAutomaton
from anyorder.engine.memory import Memory

ALL_LINKS = 10**9


class Text:
    """What a drafter sees of a request: a prompt, and a memory that may be shared."""

    def __init__(self, prompt: Seq[int], memory: Memory | None = None, salt: str = "") -> None:
        self.prompt = prompt
        self._memory = memory or Memory()
        self._salt = salt

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        return self._memory.recall(self._salt, name, make)


def open_session(context: Text, **options: Any) -> Any:
    anything: Any = context
    return SuffixAutomaton(**options).open(anything, sequence=anything, coupled=True)


def write(text: Seq[int], memory: Memory, salt: str = "", **options: Any) -> None:
    """An output that is over."""
    session = open_session(Text([99], memory, salt), **options)
    observe(session, [99, *text])
    session.close()


def observe(session: Any, text: Seq[int]) -> None:
    session.observe(text, features=None, heads=())


def proposal(session: Any, text: Seq[int], limit: int) -> Draft:
    steps: Generator[Any, Any, Draft] = session.propose(text, limit)
    with pytest.raises(StopIteration) as stopped:
        next(steps)
    draft: Draft = stopped.value.value
    assert (session.expects() >= 0) == bool(draft.tokens)
    assert not draft.tokens or draft.grade == session.expects()
    return draft


def longest_match(text: Seq[int], where: Seq[int]) -> tuple[int, int]:
    """By definition: the longest end of `text` that occurs in `where` with something after it, and
    where its latest occurrence ends."""
    for length in range(len(text), 0, -1):
        for end in range(len(where) - 1, length - 1, -1):
            if list(where[end - length : end]) == list(text[-length:]):
                return length, end
    return 0, 0


small_texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@given(small_texts, st.integers(1, 12))
def test_own_text_against_a_naive_search(text: list[int], limit: int) -> None:
    """After every token: the longest match, its latest occurrence, what followed it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_automaton, "_LINKS", ALL_LINKS)
        session = open_session(Text(text[:1]))
        for size in range(1, len(text) + 1):
            known = text[:size]
            observe(session, known)
            # The last token is followed by nothing, so every earlier occurrence counts.
            length, end = longest_match(known, known)
            draft = proposal(session, known, limit)
            if not length:
                assert not draft.tokens
                continue
            followed = known[end:]
            expected = [followed[i % len(followed)] for i in range(limit)]
            assert list(draft.tokens) == expected
            assert draft.parents is None and not draft.proposals


@given(st.lists(small_texts, max_size=5), small_texts)
def test_earlier_outputs_against_a_naive_search(outputs: list[list[int]], text: list[int]) -> None:
    """The longer match wins, this text's among equals; no match and no draft crosses outputs."""
    memory = Memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_automaton, "_LINKS", ALL_LINKS)
        for output in outputs:
            write(output, memory)
        session = open_session(Text(text[:1], memory))
        for size in range(1, len(text) + 1):
            known = text[:size]
            observe(session, known)
            length, end = longest_match(known, known)
            others = [output for output in outputs if len(output) > 1]
            matches = [(longest_match(known, output), output) for output in others]
            best = max((found for (found, _), _ in matches), default=0)
            expected = [known[end:][i % (size - end)] for i in range(5)] if length else []
            if best > length:  # then the latest output that has it
                stop, source = [(stop, out) for (found, stop), out in matches if found == best][-1]
                expected = source[stop : stop + 5]
            assert list(proposal(session, known, 5).tokens) == expected


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60))
def test_few_links_still_find_the_longest_match(text: list[int]) -> None:
    """With a bounded walk the occurrence may be an older one, but it is as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_automaton, "_LINKS", 1)
        session = open_session(Text(text))
        length, _ = longest_match(text, text)
        draft = proposal(session, text, 1)
        if not length:
            assert not draft.tokens
        else:
            followers = {
                text[end]
                for end in range(length, len(text))
                if text[end - length : end] == text[len(text) - length :]
            }
            assert draft.tokens[0] in followers


def test_states_and_steps_grow_linearly() -> None:
    """At most 2n states (Blumer et al., 1985), also for the texts that are worst."""
    rng = random.Random(0)
    for text in (
        [7] * 3000,
        [1, 2] * 1500,
        [1, *[2] * 2998, 3],
        [rng.randrange(2) for _ in range(3000)],
        list(range(3000)),
    ):
        automaton = suffix_automaton._Automaton(text)
        assert len(automaton.next) <= 2 * len(text)
        assert sum(map(len, automaton.next)) <= 3 * len(text)


def test_grades_rise_with_the_match_and_tell_sources_apart() -> None:
    buckets = [suffix_automaton._bucket(length) for length in range(1, 200)]
    assert buckets == sorted(buckets)
    assert buckets[:5] == [1, 2, 3, 4, 5] and buckets[7:9] == [5, 6] and buckets[-1] == 8
    memory = Memory()
    write([1, 2, 3, 4], memory)
    elsewhere = open_session(Text([1, 2, 3], memory))
    observe(elsewhere, [1, 2, 3])
    here = open_session(Text([1, 2, 3, 4, 1, 2, 3]))
    observe(here, [1, 2, 3, 4, 1, 2, 3])
    assert {elsewhere.expects() // 2, here.expects() // 2} == {3}
    assert elsewhere.expects() != here.expects()


def test_shortest_match() -> None:
    text = [1, 2, 3, 1, 2]
    for shortest, found in ((1, [3, 1]), (2, [3, 1]), (3, [])):
        session = open_session(Text(text), shortest=shortest)
        observe(session, text)
        assert list(proposal(session, text, 2).tokens) == found


def test_options_out_of_range() -> None:
    for options in ({"shortest": 0}, {"remember": -1}):
        with pytest.raises(InvalidRequest):
            SuffixAutomaton(**options)


# ------------------------------------------------------------------------------------------- memory
def test_prompts_are_not_remembered_and_unfinished_texts_not_seen() -> None:
    memory = Memory()
    session = open_session(Text([5, 6, 7, 8], memory))
    observe(session, [5, 6, 7, 8, 1, 2, 3])
    other = open_session(Text([1, 2], memory))
    observe(other, [1, 2])
    assert other.expects() == -1, "the first text is not over"
    session.close()
    observe(other, [1, 2, 9, 1, 2])
    assert list(proposal(other, [], 2).tokens) == [9, 1], "its own longer or equal match"
    fresh = open_session(Text([5, 6], memory))
    observe(fresh, [5, 6])
    assert fresh.expects() == -1, "a prompt"
    observe(fresh, [5, 6, 1])
    assert list(proposal(fresh, [], 5).tokens) == [2, 3]


def test_forgets_the_oldest() -> None:
    """The seventh text of six tokens is too much for 40; half of that stays, and then the eighth
    comes."""
    memory = Memory()
    texts = [[10 * i + j for j in range(6)] for i in range(1, 9)]
    for text in texts:
        write(text, memory, remember=40)
    outputs = memory.recall("", "suffix automaton of 40 tokens", lambda: None)
    assert [text[0] in outputs.automaton.next[0] for text in texts] == [False] * 4 + [True] * 4
    assert sum(map(len, outputs._texts)) == outputs._num_tokens == 24
    write(list(range(200, 300)), memory, remember=40)
    assert outputs._num_tokens == 40, "of a long text the end"
    session = open_session(Text([298], memory), remember=40)
    observe(session, [298])
    assert list(proposal(session, [], 3).tokens) == [299]


@settings(max_examples=60)
@given(st.data())
def test_texts_that_end_while_others_are_written(data: st.DataObject) -> None:
    """Several texts at once, ending in any order, with a memory that must forget: whatever is
    drafted followed a longest match in the text itself or in an output that is over."""
    memory, over = Memory(), []
    open_texts: list[tuple[Any, list[int]]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.integers(0, 9))
        if action < 2 or not open_texts:
            open_texts.append((open_session(Text([0], memory), remember=24), [0]))
            continue
        index = data.draw(st.integers(0, len(open_texts) - 1))
        session, text = open_texts[index]
        if action == 2:
            session.close()
            # What it was told of, without the prompt.
            over.append(list(session._own.tokens[1:]))
            open_texts.pop(index)
            continue
        text.extend(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
        observe(session, text)
        tokens = list(proposal(session, text, 3).tokens)
        own, _ = longest_match(text, text)
        if not tokens:
            assert own == 0
            continue
        places = [text, *over]
        assert any(
            place[end : end + len(tokens)] == tokens[: len(place) - end]
            and place[end - length : end] == text[len(text) - length :]
            for place in places
            for length in range(max(own, 1), len(text) + 1)
            for end in range(length, len(place))
        )


def test_a_change_between_observing_and_drafting_is_noticed() -> None:
    memory = Memory()
    write([1, 2, 3, 4, 5, 6], memory, remember=8)
    session = open_session(Text([1, 2, 3], memory), remember=8)
    observe(session, [1, 2, 3])
    assert session.expects() >= 0
    write([7, 8, 9, 7, 7], memory, remember=8)  # the automaton is rebuilt
    assert session.expects() == -1
    assert list(proposal(session, [1, 2, 3], 2).tokens) == []


def test_salts_and_private_requests_keep_to_themselves() -> None:
    memory = Memory()
    write([1, 2, 3], memory, salt="one")
    for salt, found in (("one", [2, 3]), ("two", []), ("", [])):
        session = open_session(Text([1], memory, salt))
        observe(session, [1])
        assert list(proposal(session, [1], 5).tokens) == found
    session = open_session(Text([1], memory, "one"), remember=0)
    observe(session, [1])
    assert session.expects() == -1


# ------------------------------------------------------------------------------------ in the engine
OPTIONS = {"drafter": "suffix_automaton", "length": 6, "adaptive": False}


@pytest.mark.parametrize("situation", ["together", "preempted"])
def test_writes_the_plain_text(situation: str) -> None:
    assert_same_text("speculative", OPTIONS, situation)


def test_a_second_request_is_drafted_from_the_first_ones_answer() -> None:
    engine = tiny_engine()
    rng = random.Random(4)
    prompt = [rng.randrange(1, VOCABULARY) for _ in range(12)]

    def ask(**changes: Any) -> tuple[list[int], int]:
        fields: dict[str, Any] = {
            "prompt": prompt,
            "method": "speculative",
            "max_new_tokens": 24,
            "temperature": 1.0,
            "seed": 3,
            "ignore_end": True,
            "options": OPTIONS,
        }
        completion = engine.generate(Request(**{**fields, **changes}))
        return completion.tokens, completion.report.num_forward_passes

    plain, _ = ask(method="autoregressive", options={})
    first, second = ask(), ask()
    assert first[0] == second[0] == plain
    assert second[1] < first[1] / 2, "it was all there before"
    for private in ({"cache_salt": "other"}, {"prefix_cache": False}):
        again = ask(**private)
        assert again == first, private
    without = ask(options={**OPTIONS, "drafter": {"name": "suffix_automaton", "remember": 0}})
    assert without == first
