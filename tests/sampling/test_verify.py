"""Draft checks: each rule against hand-computed cases and its definition.

The judge here answers from a table of distributions by path, and hands out scripted random numbers,
so that every decision can be followed. The sampled distributions as a whole are in
tests/methods/test_exactness.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyorder.core.forward import Check, Outputs, Verdict
from anyorder.sampling.draws import draw
from anyorder.sampling.row import RowResult
from anyorder.sampling.verify import CannotAnswer, dense, verify

END = 0
CHAIN = [-1, 0, 1, 2, 3]
Rule = Any


def logarithm(probability: float) -> float:
    return math.log(probability) if probability else -math.inf


class Judge:
    """The target's distribution at every place; None: that place has no answer."""

    def __init__(
        self,
        places: Mapping[int, Seq[float] | None],
        numbers: Mapping[tuple[int, str, int], float] | None = None,
        drawn: Callable[[int], float] = lambda place: 0.5,
    ) -> None:
        self.places = places
        self.numbers = numbers or {}
        self.drawn = drawn
        self.asked: list[int] = []

    def answer(self, place: int, outputs: Outputs, given: int | None = None) -> RowResult:
        if given is None:
            self.asked.append(place)
        row = self.places[place]
        if row is None:
            return RowResult(error=f"nothing left at {place}")
        probabilities = np.array(row)
        top = [(int(token), float(row[token])) for token in np.argsort(-probabilities)]
        if given is not None:
            return RowResult(given=logarithm(row[given]), top=top[: outputs.top])
        if outputs.token:
            token = draw(probabilities, self.drawn(place))
            return RowResult(token=token, logprob=logarithm(row[token]), top=top[: outputs.top])
        return RowResult(distribution=probabilities)

    def uniform(self, place: int, purpose: str, order: int = 0) -> float:
        return self.numbers[place, purpose, order]

    def ends(self, token: int) -> bool:
        return token == END


def decide(
    tokens: Seq[int],
    judge: Judge,
    *,
    rule: Rule,
    parents: Seq[int] = CHAIN,
    proposals: Seq[Any] = (),
    greedy: bool = False,
    first: int = 1,
    top: int = 0,
    **thresholds: float,
) -> Verdict:
    check = Check(first=first, rule=rule, proposals=proposals, **thresholds)
    return verify(check, tokens, parents[: len(tokens)], judge, greedy=greedy, top=top)


def sure(token: int, size: int = 5) -> list[float]:
    """All mass on one token."""
    return [float(token == other) for other in range(size)]


# -------------------------------------------------------------------------------------------- match
@pytest.mark.parametrize("rule", ["match", "ratio", "typical"])
def test_greedy_walks_down_the_tree_along_the_target(rule: Rule) -> None:
    """9 (text)
      1       2       0 -> 2 is the target's, then 3, then 4, which nobody proposed
    3   4   4   3
    """
    tokens, parents = [9, 1, 2, 3, 4, 4, 3], [-1, 0, 0, 1, 1, 2, 2]
    judge = Judge({0: sure(2), 1: sure(3), 2: sure(3), 3: sure(1), 4: sure(1), 5: sure(1),
                   6: sure(4)})  # fmt: skip
    verdict = decide(tokens, judge, rule=rule, parents=parents, greedy=True)
    assert verdict.accepted == [2, 6] and verdict.last == 6
    assert verdict.tokens == [2, 3, 4]
    assert judge.asked == [0, 2, 6], "only the places on the path are looked at"


def test_match_draws_as_plain_decoding_would() -> None:
    """Inverse CDF by hand: 0.55 falls to token 2, 0.95 to token 3, 0.05 to token 1."""
    row = [0.0, 0.3, 0.4, 0.3, 0.0]
    numbers = {0: 0.55, 1: 0.95, 2: 0.05}
    judge = Judge(dict.fromkeys(range(4), row), drawn=numbers.__getitem__)
    verdict = decide([9, 2, 3, 4], judge, rule="match")
    assert (verdict.accepted, verdict.last, verdict.tokens) == ([1, 2], 2, [2, 3, 1])
    assert verdict.logprobs == pytest.approx([math.log(0.4), math.log(0.3), math.log(0.3)])


def test_all_accepted_gives_one_token_more_and_none_proposed_gives_one() -> None:
    judge = Judge({0: sure(1), 1: sure(2), 2: sure(3)})
    assert decide([9, 1, 2], judge, rule="match").tokens == [1, 2, 3]
    assert decide([9], judge, rule="match").tokens == [1]
    assert decide([9], Judge({0: sure(1)}, {(0, "residual", 0): 0.5}), rule="ratio").tokens == [1]


def test_text_before_the_proposals_is_no_proposal() -> None:
    judge = Judge({2: sure(3), 3: sure(4)})
    verdict = decide([7, 8, 9, 3], judge, rule="match", first=3)
    assert (verdict.accepted, verdict.last, verdict.tokens) == ([3], 3, [3, 4])


def test_roots_of_a_tree_may_hang_on_nothing_or_on_the_text() -> None:
    judge = Judge({0: sure(2), 1: sure(1), 2: sure(1)})
    for root in (-1, 0):
        verdict = decide([9, 3, 2], judge, rule="match", parents=[-1, root, root])
        assert verdict.accepted == [2]


def test_of_repeated_siblings_the_first_is_taken() -> None:
    judge = Judge({0: sure(2), 1: sure(1), 2: sure(3), 3: sure(1)})
    verdict = decide([9, 2, 2, 3], judge, rule="match", parents=[-1, 0, 0, 1])
    assert verdict.accepted == [1] and verdict.tokens == [2, 1]


def test_alternatives_are_reported_for_every_token() -> None:
    row = [0.1, 0.2, 0.4, 0.3]
    verdict = decide([9, 2], Judge({0: row, 1: row}), rule="match", top=2)
    assert verdict.tokens == [2, 2]
    assert verdict.top == [[(2, 0.4), (3, 0.3)]] * 2


# -------------------------------------------------------------------------------------------- ratio
@pytest.mark.parametrize(
    ("number", "accepted"), [(0.0, True), (0.4999, True), (0.5, False), (0.9, False)]
)
def test_a_drawn_proposal_stays_with_probability_p_over_q(number: float, accepted: bool) -> None:
    """p = 0.2, q = 0.4: half of the time. What remains is p less q: 0.1 and 0.1 of tokens 2, 3."""
    p, q = [0.0, 0.2, 0.4, 0.4], np.array([0.0, 0.4, 0.3, 0.3])
    numbers = {(0, "accept", 0): number, (0, "residual", 0): 0.6, (1, "residual", 0): 0.3}
    judge = Judge({0: p, 1: p}, numbers)
    verdict = decide([9, 1], judge, rule="ratio", proposals=[q])
    assert verdict.tokens == ([1, 2] if accepted else [3])
    assert verdict.accepted == ([1] if accepted else [])


def test_a_proposal_likelier_than_proposed_always_stays() -> None:
    numbers = {(0, "accept", 0): 1 - 2**-53, (1, "residual", 0): 0.5}
    judge = Judge({0: [0.0, 0.5, 0.5], 1: [0.0, 0.0, 1.0]}, numbers)
    verdict = decide([9, 1], judge, rule="ratio", proposals=[np.array([0.0, 0.5, 0.5])])
    assert verdict.tokens == [1, 2]


def test_an_impossible_proposal_never_stays() -> None:
    numbers = {(0, "accept", 0): 0.0, (0, "residual", 0): 0.0}
    judge = Judge({0: [0.0, 0.0, 1.0]}, numbers)
    for proposals in ([np.array([0.0, 1.0, 0.0])], [None], []):
        assert decide([9, 1], judge, rule="ratio", proposals=proposals).tokens == [2]


def test_chosen_siblings_are_tried_in_order_against_what_is_left() -> None:
    """p = .2 .3 .5: after token 1 was refused, token 2 has .3 / .8 = 0.375 left."""
    p, parents = [0.0, 0.2, 0.3, 0.5], [-1, 0, 0]
    for second, expected in ((0.37, [2, 1]), (0.38, [3])):
        numbers = {
            (0, "accept", 0): 0.21,
            (0, "accept", 1): second,
            (0, "residual", 0): 0.0,
            (2, "residual", 0): 0.5,
        }
        judge = Judge({0: p, 1: p, 2: sure(1)}, numbers)
        assert decide([9, 1, 2], judge, rule="ratio", parents=parents).tokens == expected


def test_a_chosen_sibling_given_twice_has_no_second_chance() -> None:
    numbers = {(0, "accept", 0): 0.6, (0, "accept", 1): 0.0, (0, "residual", 0): 0.99}
    judge = Judge({0: [0.0, 0.5, 0.5]}, numbers)
    assert decide([9, 1, 1], judge, rule="ratio", parents=[-1, 0, 0]).tokens == [2]


def test_drawn_siblings_are_each_tested_against_the_residual() -> None:
    """SpecInfer by hand. p = .5 .3 .2, q = .8 .1 .1: token 1 stays with .625; after it was refused
    (0, .2, .1) / .3 is left, so token 2 stays with certainty."""
    p, q = [0.0, 0.5, 0.3, 0.2], np.array([0.0, 0.8, 0.1, 0.1])
    numbers = {(0, "accept", 0): 0.63, (0, "accept", 1): 0.999, (2, "residual", 0): 0.5}
    judge = Judge({0: p, 1: p, 2: sure(3)}, numbers)
    verdict = decide([9, 1, 2], judge, rule="ratio", parents=[-1, 0, 0], proposals=[q, q])
    assert verdict.accepted == [2]
    # Twice the same token: nothing of it is left the second time.
    numbers = {(0, "accept", 0): 0.63, (0, "accept", 1): 0.0, (0, "residual", 0): 0.71}
    verdict = decide([9, 1, 1], Judge({0: p}, numbers), rule="ratio", parents=[-1, 0, 0],
                     proposals=[q, q])  # fmt: skip
    assert verdict.tokens == [3], "17/24 of (2/3 - .1, 1/3 - .1) is token 2"


def test_rounding_may_refuse_what_is_certain_and_leave_nothing() -> None:
    """p = q, and a random number that arithmetic holds to be too large: p is drawn from."""

    class Rounded(Judge):
        def uniform(self, place: int, purpose: str, order: int = 0) -> float:
            return 1.0 if purpose == "accept" else 0.75

    p = [0.0, 0.5, 0.5]
    verdict = decide([9, 1], Rounded({0: p}), rule="ratio", proposals=[np.array(p)])
    assert verdict.tokens == [2]


class Refusal:
    """A random number that fails every test and notes what chance it had to pass."""

    def __init__(self, chances: list[float]) -> None:
        self.chances = chances

    def __mul__(self, proposed: float) -> Refusal:
        self.proposed = proposed
        return self

    def __lt__(self, target: float) -> bool:
        self.chances.append(min(1.0, float(target / self.proposed)))
        return False


distributions = st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any)


@given(distributions, distributions, st.integers(0, 3), st.booleans())
def test_one_place_has_the_targets_distribution(
    target: list[int], proposal: list[int], num_siblings: int, drawn: bool
) -> None:
    """Enumerated, not sampled: summed over all drafts and all outcomes of all tests, the token at
    one place has the target's distribution."""
    p_V, q_V = np.array(target) / sum(target), np.array(proposal) / sum(proposal)
    total_V = np.zeros(4)
    drafts: Any = [tuple(np.argsort(-q_V)[:num_siblings].tolist())]
    if drawn:
        drafts = itertools.product(q_V.nonzero()[0].tolist(), repeat=num_siblings)
    for draft in drafts:
        chances: list[float] = []
        left: list[Any] = []

        class Refusing(Judge):
            def uniform(self, place: int, purpose: str, order: int = 0) -> Any:
                return Refusal(self.chances) if purpose == "accept" else 0.0

        def note(rest_V: Any, _: float, left: list[Any] = left) -> None:
            left.append(rest_V)

        judge = Refusing({0: p_V.tolist()})
        judge.chances = chances
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("anyorder.sampling.verify.draw", note)
            decide([9, *draft], judge, rule="ratio", parents=[-1, *[0] * len(draft)],
                   proposals=[q_V] * len(draft) if drawn else [])  # fmt: skip
        reached = float(np.prod(q_V[list(draft)])) if drawn else 1.0
        for token, chance in zip(draft, chances, strict=True):
            total_V[token] += reached * chance
            reached *= 1 - chance
        total_V += reached * left[0] / left[0].sum()
    assert total_V == pytest.approx(p_V, abs=1e-12)


# ------------------------------------------------------------------------------------------ typical
HALVES = {(place, "residual", 0): 0.5 for place in range(9)}


@pytest.mark.parametrize(
    ("epsilon", "delta", "accepted"),
    [
        (0.09, 10.0, True),  # above epsilon
        (0.11, 10.0, False),  # H = 0.9489, so exp(-H) = 0.3872
        (1.0, 0.25, True),  # 0.25 * 0.3872 = 0.0968
        (1.0, 0.27, False),  # 0.27 * 0.3872 = 0.1045
    ],
)
def test_typical_thresholds(epsilon: float, delta: float, accepted: bool) -> None:
    row = [0.0, 0.1, 0.45, 0.45]
    verdict = decide([9, 1], Judge({0: row, 1: sure(2)}, HALVES), rule="typical",
                     epsilon=epsilon, delta=delta)  # fmt: skip
    assert verdict.tokens == ([1, 2] if accepted else [2])


def test_typical_wants_more_than_the_threshold_and_never_the_impossible() -> None:
    quarters = [0.0, 0.25, 0.25, 0.5]
    judge = Judge({0: quarters, 1: sure(2)}, HALVES)
    assert not decide([9, 1], judge, rule="typical", epsilon=0.25, delta=10.0).accepted
    assert decide([9, 1], judge, rule="typical", epsilon=0.2499, delta=10.0).accepted == [1]
    assert not decide([9, 0], judge, rule="typical", epsilon=0.0, delta=0.0).accepted


def test_typical_takes_the_longest_path_then_the_likeliest() -> None:
    """9
    1  2  3          a longer path beats a likelier one; of 2-1 and 3-1, 0.3 * 0.6 beats
       1  1          0.4 * 0.4
    """
    tokens, parents = [9, 1, 2, 3, 1, 1], [-1, 0, 0, 0, 2, 3]
    places = {
        0: [0.0, 0.3, 0.4, 0.3],
        1: sure(2),
        2: [0.0, 0.4, 0.3, 0.3],
        3: [0.0, 0.6, 0.2, 0.2],
        4: sure(2),
        5: sure(3),
    }
    verdict = decide(tokens, Judge(places, HALVES), rule="typical", parents=parents)
    assert (verdict.accepted, verdict.tokens) == ([3, 5], [3, 1, 3])
    places[3] = [0.0, 0.5, 0.25, 0.25]  # 0.15 against 0.16
    verdict = decide(tokens, Judge(places, HALVES), rule="typical", parents=parents)
    assert (verdict.accepted, verdict.tokens) == ([2, 4], [2, 1, 2])


# ---------------------------------------------------------------------------------- ends and errors
EVEN = [0.25] * 4


@pytest.mark.parametrize("rule", ["match", "ratio", "typical"])
def test_an_end_token_stops_the_walk(rule: Rule) -> None:
    """Nothing after it is looked at, and it is the last token that counts."""
    numbers = {**HALVES, **{(place, "accept", 0): 0.0 for place in range(3)}}
    judge = Judge({0: sure(1), 1: sure(END), 2: sure(3), 3: None}, numbers)
    verdict = decide([9, 1, END, 3], judge, rule=rule)
    assert verdict.tokens[:2] == [1, END]
    assert 3 not in judge.asked and 3 not in verdict.accepted
    if rule != "typical":
        assert verdict.accepted == [1], "the text ends here; the end token need not be cached"
        assert judge.asked == [0, 1]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("rule", ["match", "ratio", "typical"])
def test_a_later_place_without_an_answer_gives_what_was_accepted(rule: Rule, greedy: bool) -> None:
    numbers = {**HALVES, **{(place, "accept", 0): 0.0 for place in range(3)}}
    judge = Judge({0: sure(1), 1: sure(2), 2: None}, numbers)
    verdict = decide([9, 1, 2], judge, rule=rule, greedy=greedy)
    if rule == "typical" and not greedy:  # it looks further before it decides, so it steps back
        assert (verdict.accepted, verdict.tokens) == ([1], [1, 2])
    else:
        assert (verdict.accepted, verdict.last, verdict.tokens) == ([1, 2], 2, [1, 2])
        assert verdict.logprobs == [0.0, 0.0]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("rule", ["match", "ratio", "typical"])
def test_a_first_place_without_an_answer_is_an_error(rule: Rule, greedy: bool) -> None:
    with pytest.raises(CannotAnswer, match=r"^nothing left at 0$"):
        decide([9, 1], Judge({0: None, 1: EVEN}, HALVES), rule=rule, greedy=greedy)


def test_dense_spreads_weights_over_the_vocabulary() -> None:
    assert dense([1, 3], np.array([1.0, 3.0]), 5).tolist() == [0, 0.25, 0, 0.75, 0]
    assert dense(None, np.array([1.0, 3.0]), 2).tolist() == [0.25, 0.75]
