"""Temperature by counting draws: closed forms, enumeration, and parts of patches."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence as Seq

import numpy as np
import pytest

from anyorder.core.forward import Patch
from anyorder.sampling.draws import draw, draw_rows, uniform, uniforms
from anyorder.sampling.patches import choose_patches


def draws(*patches: str) -> np.ndarray:
    """Spelt patches as ids."""
    return np.array([[ord(letter) for letter in patch] for patch in patches])


def choose_patch(
    draws_SK: np.ndarray, *, temperature: float, begins: Seq[int] = (), uniform: float
) -> Patch:
    """A single row's."""
    (patch,) = choose_patches(
        draws_SK[None], temperatures=[temperature], begins=[begins], uniforms=[uniform]
    )
    return patch


def one_by_one(
    draws_SK: np.ndarray, *, temperature: float, begins: Seq[int], uniform: float
) -> Patch:
    """The same for a row alone, step by step as the paper says it."""
    begins_B = np.asarray(begins, dtype=draws_SK.dtype)
    agree_S = (draws_SK[:, : len(begins)] == begins_B).cumprod(axis=1).sum(axis=1)
    draws_SK = draws_SK[agree_S == agree_S.max()]
    draws_SK[:, : len(begins)] = begins_B
    patches_UK, first_U, counts_U = np.unique(
        draws_SK, axis=0, return_index=True, return_counts=True
    )
    order = first_U.argsort()
    patches_UK, counts_U = patches_UK[order], counts_U[order]
    if temperature == 0:
        chosen = int(counts_U.argmax())
    else:
        most = int(counts_U.max())
        power = min(round(1 / temperature), most)
        log_factorials = np.concatenate(([0.0], np.log(np.arange(1, most + 1)).cumsum()))
        possible = counts_U >= power
        rest_U = np.where(possible, counts_U - power, 0)
        logs_U = np.where(possible, log_factorials[counts_U] - log_factorials[rest_U], -np.inf)
        chosen = draw(np.exp(logs_U - logs_U.max()), uniform)
    tokens_K = patches_UK[chosen]
    agree_K = (draws_SK == tokens_K).cumprod(axis=1).sum(axis=0)
    shares_K = agree_K / np.concatenate(([len(draws_SK)], agree_K[:-1]))
    return Patch(tokens=tokens_K.tolist(), logprobs=np.log(shares_K).tolist())


@pytest.mark.parametrize("vocabulary", [2, 5, 60_000])
@pytest.mark.parametrize("num_draws", [1, 2, 30, 200, 700])
def test_rows_are_counted_together_as_each_alone(num_draws: int, vocabulary: int) -> None:
    """To the last bit, whatever their number, temperatures and given beginnings."""
    rng = np.random.default_rng(num_draws + vocabulary)
    for trial in range(30):
        num_rows, size = int(rng.integers(1, 9)), int(rng.integers(1, 6))
        # Few different ones of many ids, or ids as they come.
        kinds = rng.integers(0, vocabulary, (7 if trial % 2 else 300, size))
        draws_MSK = kinds[rng.integers(0, len(kinds), (num_rows, num_draws))]
        temperatures = rng.choice([0, 1, 1 / 2, 1 / 5, 1 / 40], num_rows).tolist()
        begins = [kinds[0, : rng.integers(0, size + 1)].tolist() for _ in range(num_rows)]
        if trial % 3 == 0:
            begins = [()] * num_rows
        numbers = rng.random(num_rows).tolist()
        before = draws_MSK.copy()
        found = choose_patches(
            draws_MSK, temperatures=temperatures, begins=begins, uniforms=numbers
        )
        assert np.array_equal(draws_MSK, before)
        for row in range(num_rows):
            assert found[row] == one_by_one(
                draws_MSK[row],
                temperature=temperatures[row],
                begins=begins[row],
                uniform=numbers[row],
            )


@pytest.mark.parametrize("longest", [1, 9, 200, 256, 257, 2000])
def test_rows_of_weights_are_drawn_from_together_as_each_alone(longest: int) -> None:
    rng = np.random.default_rng(longest)
    for _ in range(40):
        lengths = rng.integers(1, longest + 1, int(rng.integers(1, 9)))
        rows = [rng.exponential(size=length) * (rng.random(length) < 0.7) for length in lengths]
        for weights in rows:
            weights[rng.integers(len(weights))] = 1.0
        numbers = rng.choice([0.0, 1 - 2.0**-53, 0.5, *rng.random(4)], len(rows))
        found = draw_rows(np.concatenate(rows), lengths, numbers)
        assert found.tolist() == [draw(*pair) for pair in zip(rows, numbers, strict=True)]


def distribution(found: np.ndarray, temperature: float, steps: int = 400) -> dict[str, float]:
    """How often each patch is chosen, over an even grid of the uniform number."""
    counts: Counter[str] = Counter()
    for step in range(steps):
        patch = choose_patch(found, temperature=temperature, uniform=(step + 0.5) / steps)
        counts["".join(map(chr, patch.tokens))] += 1
    return {patch: count / steps for patch, count in counts.items()}


@pytest.mark.parametrize("power", [1, 2, 3])
def test_a_patch_weighs_the_ways_to_see_it_so_often(power: int) -> None:
    """Counted by hand: every subset of the draws of that size that agrees votes for its patch."""
    spelt = ("ab", "cd", "ab", "ce", "ab", "cd", "cd", "ab")
    votes: Counter[str] = Counter()
    for subset in itertools.combinations(spelt, power):
        if len(set(subset)) == 1:
            votes[subset[0]] += 1
    found = distribution(draws(*spelt), 1 / power)
    total = sum(votes.values())
    assert found.keys() == votes.keys()
    for patch, share in found.items():
        assert share == pytest.approx(votes[patch] / total, abs=0.003)


def test_as_many_draws_as_the_power_are_exact_where_they_agree() -> None:
    """p^n / sum of p^n, over all outcomes of n draws in which a patch occurs n times."""
    probabilities = {"aa": 0.5, "ab": 0.3, "ba": 0.2}
    chosen: dict[str, float] = defaultdict(float)
    for outcome in itertools.product(probabilities, repeat=3):
        if len(set(outcome)) == 1:
            (patch,) = distribution(draws(*outcome), 1 / 3, steps=1)
            chosen[patch] += math.prod(probabilities[draw] for draw in outcome)
    total = sum(p**3 for p in probabilities.values())
    for patch, p in probabilities.items():
        assert chosen[patch] / sum(chosen.values()) == pytest.approx(p**3 / total)


def test_many_draws_come_near_the_power_of_the_probability() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    patches = draws("aa", "ab", "ba")
    rng, counts = np.random.default_rng(0), np.zeros(3)
    for _ in range(3000):
        found = patches[rng.choice(3, size=200, p=probabilities)]
        patch = choose_patch(found, temperature=0.5, uniform=rng.random())
        counts[(patches == patch.tokens).all(1).argmax()] += 1
    expected = probabilities**2 / (probabilities**2).sum()
    assert counts / 3000 == pytest.approx(expected, abs=0.03)


def test_no_patch_often_enough_lowers_the_power() -> None:
    assert distribution(draws("a", "b", "b", "c", "c"), 1 / 3) == pytest.approx(
        {"b": 0.5, "c": 0.5}, abs=0.003
    )
    assert len(distribution(draws("a", "b", "c"), 0.1)) == 3


def test_greedy_is_the_most_frequent_and_then_the_first() -> None:
    for value in (0.0, 0.99):
        patch = choose_patch(draws("zz", "ab", "ab", "zz"), temperature=0, uniform=value)
        assert patch.tokens == [ord("z")] * 2
        patch = choose_patch(draws("zz", "ab", "ab"), temperature=0, uniform=value)
        assert patch.tokens == [ord("a"), ord("b")]


def test_log_probabilities_are_shares_that_multiply() -> None:
    found = draws("abc", "abd", "abc", "axc", "bbc")
    patch = choose_patch(found, temperature=0, uniform=0.0)
    assert np.exp(patch.logprobs) == pytest.approx([4 / 5, 3 / 4, 2 / 3])
    assert math.exp(sum(patch.logprobs)) == pytest.approx(2 / 5)
    assert choose_patch(found[:1], temperature=1, uniform=0.5).logprobs == [0, 0, 0]


def test_only_draws_that_begin_as_given_count() -> None:
    found = draws("abc", "xbc", "xbd", "xbd", "abc", "abc")
    begins = [ord("x")]
    patch = choose_patch(found, temperature=0, begins=begins, uniform=0.0)
    assert "".join(map(chr, patch.tokens)) == "xbd"
    assert np.exp(patch.logprobs[1:]) == pytest.approx([1, 2 / 3])
    # None does: those that agree the longest are taken for it.
    patch = choose_patch(found, temperature=0, begins=[ord("x"), ord("q")], uniform=0.0)
    assert "".join(map(chr, patch.tokens)) == "xqd"
    assert found[1].tolist() == draws("xbc")[0].tolist()  # and are left as they were


def test_many_numbers_for_each_key() -> None:
    found, other = uniforms(4000, [(7, 1, 2), (7, 1, 3)])
    assert found.shape == (4000,) and found.min() >= 0 and found.max() < 1
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert found.var() == pytest.approx(1 / 12, abs=0.005)
    assert np.array_equal(uniforms(10, [(7, 1, 2)])[0], found[:10])
    assert not np.isin(other, found).any()
    assert uniform(7, 1, 2) not in found
    # The same on every machine and with every version of numpy.
    assert uniforms(2, [(3,), (0, 1)])[1].tolist() == FIRST


FIRST = [0.3903312761437384, 0.126031915965654]
