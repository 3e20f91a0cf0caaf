"""Acceptance rules sample the exact joint distribution, and wrong ones are caught.

The exact distribution is enumerated with plain NumPy from a dense pass (`benchmarks.exactness`).
Seeds are fixed, so nothing here fails by chance; the slow run has the 20,000 seeds of the proof.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from benchmarks.exactness import (
    CASES,
    CONTROLS,
    NUM_TOKENS,
    Case,
    chi_square,
    exact,
    sample,
    usual_variation,
)

from anyorder.engine import checks
from anyorder.sampling import verify
from anyorder.sampling.draws import draw

RATIO = [case for case in CASES if case.rule == "ratio"]
MATCH = [case for case in CASES if case.rule == "match"]
PLAIN, TYPICAL = CASES[0], CASES[-1]
ENOUGH = 1e-3
"""A right rule's p-value is above this."""
FAR_OFF = 1e-6
"""A wrong one's is below this."""


def name(case: Case) -> str:
    return f"{case.rule}: {case.draft}"


def test_the_oracle_is_a_distribution_that_every_control_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joint = np.array(list(exact().values()))
    assert joint.sum() == pytest.approx(1) and len(joint) == 7**NUM_TOKENS
    assert (joint == 0).sum() > 100, "top-p should make something impossible"
    for control, off in {
        "temperature": 1.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
    }.items():
        with monkeypatch.context() as patch:
            patch.setitem(CONTROLS, control, off)
            other = np.array(list(exact.__wrapped__().values()))
        assert np.abs(joint - other).sum() / 2 > 0.05, control


def test_chi_square_against_published_values() -> None:
    """Critical values of the usual tables: 3.841 at one degree of freedom, 7.815 at three."""
    one = chi_square(np.array([100 + 3.841**0.5 * 50**0.5, 100 - 3.841**0.5 * 50**0.5]),
                     np.array([0.5, 0.5]))  # fmt: skip
    assert one == pytest.approx(0.05, abs=1e-4)
    shift = (7.815 * 25 / 4) ** 0.5
    seen = np.array([25 + shift, 25 - shift, 25 + shift, 25 - shift])
    assert chi_square(seen, np.full(4, 0.25)) == pytest.approx(0.05, abs=1e-4)
    assert chi_square(np.array([50.0, 49.0, 1.0]), np.array([0.5, 0.5, 0.0])) == 0.0


def test_chi_square_of_exact_samples_is_uniform() -> None:
    expected = np.array(list(exact().values()))
    samples = np.random.default_rng(1).multinomial(1000, expected / expected.sum(), 500)
    values = np.sort([chi_square(sample.astype(float), expected) for sample in samples])
    # Kolmogorov-Smirnov; 1.95 / sqrt(n) is passed once in a thousand times.
    assert np.abs(values - np.arange(1, 501) / 500).max() < 1.95 / 500**0.5
    assert usual_variation(expected, 1000) == pytest.approx(
        (np.abs(samples / 1000 - expected).sum(1) / 2).mean(), rel=0.01
    )


@pytest.mark.parametrize("case", RATIO, ids=name)
def test_ratio_samples_the_exact_distribution(case: Case) -> None:
    finding = sample(case, 500, first_seed=5000)
    assert finding.p_value > ENOUGH, finding.line()
    assert finding.total_variation < 1.15 * finding.expected_total_variation, finding.line()
    assert finding.says_exact
    assert finding.accepted_length is not None and 1.1 < finding.accepted_length < 2.5


@pytest.mark.parametrize("case", MATCH, ids=name)
def test_match_writes_the_text_of_plain_decoding(case: Case) -> None:
    plain, finding = (sample(which, 200) for which in (PLAIN, case))
    assert finding.texts == plain.texts
    assert finding.says_exact and plain.says_exact
    assert finding.accepted_length is not None and 1.1 < finding.accepted_length < 2.5


def test_typical_differs_and_says_so() -> None:
    finding = sample(TYPICAL, 500)
    assert finding.p_value < FAR_OFF, finding.line()
    assert not finding.says_exact


# -------------------------------------------------------------------------------------- wrong rules
def accept_always(patch: pytest.MonkeyPatch) -> None:
    right = checks._Judge.uniform

    def uniform(self: Any, place: int, purpose: str, order: int = 0) -> float:
        return -1.0 if purpose == "accept" else right(self, place, purpose, order)

    patch.setattr(checks._Judge, "uniform", uniform)


def no_residual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "_rest", lambda target_V, token, proposal_V: target_V)


def residual_not_renormalised(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        verify,
        "_rest",
        lambda target_V, token, proposal_V: np.maximum(
            target_V - (np.eye(len(target_V))[token] if proposal_V is None else proposal_V), 0
        ),
    )


def only_the_token_removed(patch: pytest.MonkeyPatch) -> None:
    right = verify._rest
    patch.setattr(verify, "_rest", lambda target_V, token, _: right(target_V, token, None))


def siblings_against_unreduced(patch: pytest.MonkeyPatch) -> None:
    def ratio(check: Any, tokens: Any, children: Any, judge: Any) -> Any:
        accepted: list[int] = []
        place = check.first - 1
        while True:
            whole_V = rest_V = judge.answer(place, verify._DISTRIBUTION).distribution
            for order, child in enumerate(children.get(place, ())):
                q_V = check.proposals[child - check.first] if check.proposals else None
                q = 1.0 if q_V is None else q_V[tokens[child]]
                if judge.uniform(place, "accept", order) * q < whole_V[tokens[child]]:
                    break
                rest_V = verify._rest(rest_V, tokens[child], q_V)
            else:
                after = draw(rest_V, judge.uniform(place, "residual"))
                return verify._Walk(accepted=accepted, after=after)
            accepted.append(child)
            place = child

    patch.setattr(verify, "_ratio", ratio)


def first_sibling_matches(patch: pytest.MonkeyPatch) -> None:
    """Token matching that takes a proposal whatever was drawn."""

    def match(check: Any, tokens: Any, children: Any, judge: Any, top: int) -> Any:
        accepted: list[int] = []
        place = check.first - 1
        while children.get(place):
            place = children[place][0]
            accepted.append(place)
        token = judge.answer(place, verify.Outputs(logprob=False)).token
        return verify._Walk(accepted=accepted, after=token)

    patch.setattr(verify, "_match", match)


def penalties_forget_the_draft(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checks, "_history", lambda job, row: job.sequence.tokens[: job.request.start + 1])


# What is wrong, in which rule and draft, and after how many seeds it is seen.
WRONG: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str, int]] = [
    (accept_always, "ratio", "chain, drawn", 300),
    (no_residual, "ratio", "chain, drawn", 1000),
    (residual_not_renormalised, "ratio", "tree, i.i.d.", 1000),
    (siblings_against_unreduced, "ratio", "tree, chosen", 400),
    (first_sibling_matches, "match", "chain, chosen", 300),
    (penalties_forget_the_draft, "ratio", "chain, drawn", 500),
]
MORE_WRONG: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str, int]] = [
    (accept_always, "ratio", "tree, chosen", 1000),
    (no_residual, "ratio", "chain, draft model", 1000),
    (no_residual, "ratio", "tree, chosen", 1000),
    (residual_not_renormalised, "ratio", "tree, chosen", 1000),
    (only_the_token_removed, "ratio", "chain, drawn", 3000),
    (only_the_token_removed, "ratio", "tree, i.i.d., draft model", 1000),
    (siblings_against_unreduced, "ratio", "tree, i.i.d.", 1000),
    (penalties_forget_the_draft, "ratio", "tree, chosen", 1000),
]
ALL_WRONG = [*WRONG, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_WRONG)]


def wrong_name(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("wrong", "rule", "draft", "num_seeds"), ALL_WRONG, ids=wrong_name)
def test_a_wrong_rule_is_caught(
    wrong: Callable[[pytest.MonkeyPatch], None],
    rule: str,
    draft: str,
    num_seeds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong(monkeypatch)
    (case,) = [case for case in CASES if (case.rule, case.draft) == (rule, draft)]
    finding = sample(case, num_seeds, first_seed=5000)
    print(finding.line())
    assert finding.p_value < FAR_OFF, finding.line()


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.is_exact], ids=name)
def test_twenty_thousand_seeds(case: Case) -> None:
    finding = sample(case, 20000)
    print(finding.line())
    assert finding.p_value > ENOUGH, finding.line()
    assert finding.total_variation < 1.15 * finding.expected_total_variation, finding.line()
