"""Commit and revision policies on numbers small enough to decide by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest
from anyorder.core.options import build
from anyorder.sampling.denoising import Plan
from anyorder.sampling.draws import uniform
from anyorder.sampling.revision import Revision, highest_rate
from anyorder.sampling.unmasking import Candidate, Commit, Schedule, Step, open_share


def policy(name: str, **options: Any) -> Commit:
    found: Commit = build(lookup.find("sampling/unmasking", name, kind="commit"), options)
    return found


def revision(name: str, **options: Any) -> Revision:
    found: Revision = build(lookup.find("sampling/revision", name, kind="revise"), options)
    return found


def found(probabilities: list[float], **columns: list[float]) -> list[Candidate]:
    """Candidates at places 0, 1, ... with these probabilities."""
    places = columns.pop("places", list(range(len(probabilities))))
    return [
        Candidate(
            place=int(places[i]),
            token=i,
            logprob=math.log(p),
            **{name: values[i] for name, values in columns.items()},
        )
        for i, p in enumerate(probabilities)
    ]


def step(due: int = 1, **fields: float) -> Step:
    return Step(**{"before": 1.0, "after": 0.5, "due": due, **fields})  # type: ignore[arg-type]


def test_scheduled_policies() -> None:
    everyone = found(
        [0.5, 0.9, 0.7],
        margin=[0.4, 0.1, 0.2],
        entropy=[0.3, 0.2, 0.1],
        chance=[0.2, 0.1, 0.6],
        places=[7, 4, 5],
    )
    orders = {
        "confidence": [1, 2, 0],
        "margin": [0, 2, 1],
        "entropy": [2, 1, 0],
        "random": [2, 0, 1],
        "sequential": [1, 2, 0],
    }
    for name, order in orders.items():
        for due in (1, 2, 3):
            assert policy(name).choose(everyone, step(due)) == order[:due], name


def test_noise_draws_in_proportion() -> None:
    """One draw with weights exp(p / noise)."""
    noise, probabilities = 0.5, [0.9, 0.5, 0.1]
    picker = policy("confidence", noise=noise)
    counts: Counter[int] = Counter()
    for seed in range(4000):
        chances = [uniform(seed, place) for place in range(3)]
        counts.update(picker.choose(found(probabilities, chance=chances), step()))
    weights = [math.exp(p / noise) for p in probabilities]
    for index, weight in enumerate(weights):
        assert counts[index] / 4000 == pytest.approx(weight / sum(weights), abs=0.03)


def test_threshold_takes_all_that_are_likely_and_what_is_due() -> None:
    picker = policy("threshold", level=0.8)
    assert picker.choose(found([0.5, 0.85, 0.9]), step()) == [2, 1]
    assert picker.choose(found([0.5, 0.85, 0.9]), step(3)) == [2, 1, 0]
    assert picker.choose(found([0.5, 0.2]), step()) == [0]


def test_factor() -> None:
    # (n + 1) (1 - p_n): 2 * 0.1, 3 * 0.2, 4 * 0.3.
    everyone = found([0.7, 0.9, 0.8])
    for factor, count in ((0.1, 1), (0.5, 1), (0.7, 2), (1.21, 3)):
        assert policy("factor", factor=factor).choose(everyone, step()) == [1, 2, 0][:count]


def test_entropy_bound_adds_up_all_but_the_last() -> None:
    everyone = found([0.5] * 4, entropy=[0.3, 0.05, 0.04, 2.0])
    for bound, count in ((0.0, 1), (0.03, 1), (0.05, 2), (0.1, 3), (0.38, 3), (0.4, 4)):
        found_order = policy("entropy_bound", bound=bound).choose(everyone, step())
        assert found_order == [2, 1, 0, 3][:count], bound


def test_hierarchy_takes_the_best_of_each_gap() -> None:
    everyone = found([0.6, 0.7, 0.4, 0.95, 0.3], places=[0, 1, 3, 5, 6])
    assert policy("hierarchy", low=0.35).choose(everyone, step()) == [3, 1, 2]
    assert policy("hierarchy", low=0.5).choose(everyone, step()) == [3, 1]
    assert policy("hierarchy", low=0.99, level=0.99).choose(everyone, step()) == [3]
    assert policy("hierarchy", low=0.99, level=0.6).choose(everyone, step()) == [3, 1, 0]


def test_ancestral_leaves_it_to_chance() -> None:
    everyone = found([0.5] * 4, chance=[0.2, 0.8, 0.49, 0.5])
    assert policy("ancestral").choose(everyone, step()) == [0, 2]
    assert policy("ancestral").choose(everyone, step(after=0.0)) == [0, 1, 2, 3]
    # What is opened in the same step is made up for: (0.8 - 0.7 + 0.5 * 0.2) / 0.8.
    assert step(before=0.8, after=0.7, rate=0.5).share == pytest.approx(0.25)


@pytest.mark.parametrize(("before", "after"), [(1 - 1e-9, 0.7), (0.6, 0.5), (0.1, 0.0)])
def test_ancestral_is_sedds_analytic_step(before: float, after: float) -> None:
    """Tweedie's formula (arXiv 2310.16834) at a masked place of four tokens and the mask: with the
    share that ancestral opens, the place gets each token as often."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    matrix = -torch.eye(5, dtype=torch.float64)
    matrix[4] += 1  # all go to the mask
    less = math.log((1 - after) / (1 - before))
    ratios = p * (1 - before) / before
    ratios[4] = 1.0
    line = torch.linalg.matrix_exp(-less * matrix) @ ratios
    line = line * torch.linalg.matrix_exp(less * matrix)[4]
    share = step(before=before, after=after).share
    expected = share * p
    expected[4] = 1 - share
    torch.testing.assert_close(line, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_open_all_and_close_all(schedule: Schedule) -> None:
    shares = [open_share(schedule, k / 8) for k in range(9)]
    assert shares[0] == 1 and shares[-1] == 0 and shares == sorted(shares, reverse=True)
    assert open_share("cosine", 1 / 3) == pytest.approx(math.sqrt(3) / 2)
    plan = Plan(commit=policy("confidence"), revise=revision("keep"), schedule=schedule, steps=8)
    num_open, counts = 20, []
    for number in range(8):
        counts.append(plan.step(number, num_open, 0).due)
        num_open -= counts[-1]
    assert num_open == 0 and min(counts) >= 1
    if schedule == "linear":  # 20 // 8, and one more in the first 20 % 8 steps
        assert counts == [3, 3, 3, 3, 2, 2, 2, 2]
    else:
        assert counts[0] < counts[-1]


def test_a_geometric_schedule() -> None:
    """Noise levels as SEDD's program has them, the last of them taken to 0 at once."""
    lowest, highest = 1e-4, 20.0
    for k in range(8):
        left = 1 - k / 8
        level = lowest ** (1 - left) * highest**left
        assert open_share("geometric", k / 8) == pytest.approx(1 - math.exp(-level), rel=1e-9)
    assert open_share("geometric", 1.0) == 0.0


def test_remasking_rates() -> None:
    # sigma_max = min(1, (1 - alpha_s) / alpha_t), alpha = 1 - share of masks.
    late = step(before=0.4, after=0.3)
    assert highest_rate(late) == pytest.approx(0.5)
    assert highest_rate(step(before=1.0, after=0.9)) == 1.0
    assert highest_rate(step(before=0.1, after=0.0)) == 0.0
    assert revision("cap", probability=0.2).rate(late) == 0.2
    assert revision("cap", probability=0.7).rate(late) == pytest.approx(0.5)
    assert revision("rescale", share=0.1).rate(late) == pytest.approx(0.05)
    assert revision("keep").reopen(found([0.1]), late) == []
    standing = found([0.9, 0.1], chance=[0.26, 0.24])
    assert revision("cap", probability=0.25).reopen(standing, late) == [1]
    # The softmax of minus probabilities, times the highest rate: 0.155 and 0.345.
    assert revision("doubt").reopen(found([0.9, 0.1], chance=[0.156, 0.344]), late) == [1]
    assert revision("doubt").reopen(found([0.9, 0.1], chance=[0.154, 0.346]), late) == [0]
    assert revision("lowest", count=2).reopen(found([0.5, 0.2, 0.9]), late) == [1, 0]
    assert revision("lowest").reopen(found([0.5]), step(after=0.0)) == []


def test_the_loop_holds_its_level() -> None:
    loop = revision("loop", probability=0.05, level=0.2, begin=0.5, end=0.75)
    shares = [loop.open_share("linear", done) for done in (0, 0.25, 0.5, 0.6, 0.75, 0.875, 1.0)]
    assert shares == pytest.approx([1, 0.6, 0.2, 0.2, 0.2, 0.1, 0])
    assert loop.rate(step(before=0.2, after=0.2)) == 0.05
    assert loop.rate(step(before=0.3, after=0.2)) == 0.0
    with pytest.raises(InvalidRequest, match=r"begins at 0\.9 of the steps and ends at 0\.5"):
        revision("loop", begin=0.9, end=0.5)


def test_edits_need_another_token_that_is_likely() -> None:
    old = found([0.9, 0.9, 0.9])
    new = [
        Candidate(place=0, token=5, logprob=math.log(0.6)),
        Candidate(place=1, token=1, logprob=math.log(0.9)),
        Candidate(place=2, token=5, logprob=math.log(0.4)),
    ]
    assert revision("edit").replace(old, new) == [0]
    assert revision("edit", level=0.3).replace(old, new) == [0, 2]


@pytest.mark.parametrize("options", [{}, {"noise": 0.5}], ids=str)
@pytest.mark.parametrize("name", lookup.names("sampling/unmasking"))
def test_policies_that_read_chances_say_so(name: str, options: dict[str, float]) -> None:
    """Nothing is rolled for the others."""
    if "noise" in options and not hasattr(policy(name), "noise"):
        return
    commit = policy(name, **options)
    chosen = set()
    for number in range(20):
        chances = [uniform(0, number, place) for place in range(6)]
        columns = {"chance": chances, "margin": [0.1] * 6, "entropy": [0.2] * 6}
        everyone = found([0.5, 0.4, 0.45, 0.3, 0.35, 0.6], **columns)
        chosen.add(tuple(commit.choose(everyone, step(2))))
    assert commit.reads_chance == (len(chosen) > 1)
