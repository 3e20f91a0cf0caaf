"""Attention kinds against naive definitions; requests' defaults; the generators around `yield`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyorder.core.attention import (
    BIDIRECTIONAL,
    CAUSAL,
    Attention,
    Bidirectional,
    Blocks,
    Causal,
    Explicit,
    Groups,
    Tree,
)
from anyorder.core.forward import (
    NOTHING,
    TOKEN,
    ForwardRequest,
    ForwardResult,
    forward,
    forward_all,
)
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence

NUM_TOKENS = st.integers(1, 9)


def seen(attention: Attention, num_tokens: int) -> list[list[bool]]:
    attention.check(num_tokens)
    visible = attention.visible(num_tokens)
    assert visible.dtype == torch.bool and visible.shape == (num_tokens, num_tokens)
    rows: list[list[bool]] = visible.tolist()
    return rows


@given(NUM_TOKENS)
def test_causal(n: int) -> None:
    assert seen(Causal(), n) == [[j <= i for j in range(n)] for i in range(n)]
    assert list(CAUSAL.depths(n)) == list(range(n))


@given(NUM_TOKENS)
def test_bidirectional(n: int) -> None:
    assert seen(Bidirectional(), n) == [[True] * n] * n
    assert list(BIDIRECTIONAL.depths(n)) == list(range(n))


@given(NUM_TOKENS, st.integers(1, 5))
def test_blocks(n: int, size: int) -> None:
    attention = Blocks(size=size)
    assert seen(attention, n) == [[j < (i // size + 1) * size for j in range(n)] for i in range(n)]
    assert list(attention.depths(n)) == list(range(n))


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=9))
def test_groups(ids: list[int]) -> None:
    attention = Groups(ids=tuple(ids))
    assert seen(attention, len(ids)) == [[a == b for b in ids] for a in ids]
    assert list(attention.depths(len(ids))) == list(range(len(ids)))


@st.composite
def parents(draw: Any) -> tuple[int, ...]:
    n = draw(NUM_TOKENS)
    return tuple(draw(st.integers(-1, child - 1)) for child in range(n))


def ancestors(node: int, tree: tuple[int, ...]) -> list[int]:
    return [] if tree[node] < 0 else [tree[node], *ancestors(tree[node], tree)]


@given(parents())
def test_tree(tree: tuple[int, ...]) -> None:
    attention, n = Tree(parents=tree), len(tree)
    lines = [[node, *ancestors(node, tree)] for node in range(n)]
    assert seen(attention, n) == [[j in lines[i] for j in range(n)] for i in range(n)]
    assert list(attention.depths(n)) == [len(line) - 1 for line in lines]


@given(NUM_TOKENS)
def test_a_tree_without_branches_is_causal(n: int) -> None:
    chain = Tree(parents=tuple(range(-1, n - 1)))
    assert seen(chain, n) == seen(CAUSAL, n)
    assert list(chain.depths(n)) == list(range(n))


@given(st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
))  # fmt: skip
def test_explicit(mask: list[list[bool]]) -> None:
    assert seen(Explicit(mask=tuple(map(tuple, mask))), len(mask)) == mask


KINDS = [CAUSAL, BIDIRECTIONAL, *(Blocks(size=size) for size in (1, 2, 3, 4)),
         Groups(ids=(0, 0, 1, 1, 0, 2)), Tree(parents=(-1, 0, 0, 1, 2, 4)),
         Explicit(mask=((True,) * 6,) * 6)]  # fmt: skip


@pytest.mark.parametrize("attention", KINDS, ids=str)
def test_where_a_chunk_may_be_split(attention: Attention) -> None:
    """Splitting needs that no earlier token sees a later one, that each later token sees every
    earlier one (they become cached past), and that positions simply go on."""
    visible = attention.visible(6)
    for offset in range(1, 6):
        unseen = not visible[:offset, offset:].any()
        past = bool(visible[offset:, :offset].all())
        simple = list(attention.depths(6)) == list(range(6))
        if attention.can_split_at(offset):
            assert unseen and past and simple
        elif isinstance(attention, Causal | Bidirectional | Blocks):
            assert not unseen


SHARED_START = Explicit(mask=((True, False, False), (True, True, False), (True, True, True)))


@pytest.mark.parametrize("attention", [*KINDS, Tree(parents=(-1, 0, 1, 1, 2, 4))], ids=str)
def test_what_ran_as_if_causally(attention: Attention) -> None:
    """The first tokens saw those before them and nothing else, at positions that simply go on."""
    visible, depths = attention.visible(6), list(attention.depths(6))
    found = []
    for offset in range(7):
        causal = torch.ones(offset, 6, dtype=torch.bool).tril()
        alike = torch.equal(visible[:offset], causal) and depths[:offset] == list(range(offset))
        found.append(attention.is_causal_before(offset))
        if not isinstance(attention, Blocks | Groups):  # those do not look so closely
            assert found[-1] == alike
        assert not found[-1] or alike
    assert found[0]
    assert all(SHARED_START.is_causal_before(offset) for offset in range(4))


@pytest.mark.parametrize(
    ("attention", "num_tokens", "message"),
    [
        (Groups(ids=(0, 1)), 3, "2 group ids for 3 tokens"),
        (Tree(parents=(-1, 0)), 3, "2 parents, 3 tokens"),
        (Tree(parents=(0,)), 1, "parents come before their children"),
        (Tree(parents=(-1, 2, 0)), 3, "parents come before their children"),
        (Tree(parents=(-1, -2)), 2, "parents come before their children"),
        (Explicit(mask=((True,),)), 2, "must be 2 by 2"),
        (Explicit(mask=((True, True), (True,))), 2, "must be 2 by 2"),
        (Explicit(mask=()), 1, "must be 1 by 1"),
    ],
)
def test_descriptions_that_do_not_fit_are_caught(
    attention: Attention, num_tokens: int, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        attention.check(num_tokens)


def test_the_base_kind_is_unfinished() -> None:
    Attention().check(3)
    assert not Attention().can_split_at(0)
    with pytest.raises(AssertionError, match="Attention does not define visible"):
        Attention().visible(3)


def test_kinds_compare_by_value() -> None:
    """Attention masks are cached by kind, so equal descriptions must be one key."""
    assert len({Blocks(size=2), Blocks(size=2), Causal(), CAUSAL, BIDIRECTIONAL}) == 3


def request(tokens: list[int], **fields: Any) -> ForwardRequest:
    sequence = Sequence(store=None, role="draft")  # type: ignore[arg-type]
    return ForwardRequest(sequence=sequence, tokens=tokens, start=4, **fields)


def test_request_defaults() -> None:
    plain = request([5, 6, 7])
    assert plain.role == "draft"
    assert list(plain.output_rows) == [2]
    assert plain.end == 7
    assert plain.attention == CAUSAL and plain.outputs is TOKEN and plain.sampling is None
    assert list(request([5, 6, 7], rows=[0, 2]).output_rows) == [0, 2]
    assert list(request([5, 6, 7], rows=[]).output_rows) == []
    assert TOKEN.token and TOKEN.logprob and not TOKEN.logits
    assert not NOTHING.token and not NOTHING.logprob


def test_forward_asks_once_and_returns_the_answer() -> None:
    sequence = Sequence(store=None)  # type: ignore[arg-type]
    sampling = Request(prompt="x", temperature=0.5)
    asking = forward(
        sequence, [1, 2], 3, attention=BIDIRECTIONAL, rows=[0], outputs=NOTHING, sampling=sampling
    )
    (asked,) = next(asking)
    assert asked.sequence is sequence and asked.tokens == [1, 2] and asked.start == 3
    assert asked.attention is BIDIRECTIONAL and asked.rows == [0] and asked.outputs is NOTHING
    assert asked.sampling is sampling
    answer = ForwardResult(tokens=[9])
    with pytest.raises(StopIteration) as done:
        asking.send([answer])
    assert done.value.value is answer


def test_forward_all_keeps_the_order() -> None:
    requests = [request([1]), request([2])]
    asking = forward_all(requests)
    assert next(asking) is requests
    answers = [ForwardResult(tokens=[3]), ForwardResult(tokens=[4])]
    with pytest.raises(StopIteration) as done:
        asking.send(answers)
    assert done.value.value == answers
