"""Following a side with the reference, against the same done place by place."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from anyorder.evaluation.benchmarks import checks
from anyorder.evaluation.benchmarks.process import Answer
from anyorder.evaluation.benchmarks.sides import SIDES

VOCABULARY = 5


def chances(text: list[int]) -> list[float]:
    """A language model: the next token's distribution depends on the last two tokens."""
    rng = random.Random(f"{text[-2:]}")
    weights = [rng.random() ** 3 for _ in range(VOCABULARY)]
    return [weight / sum(weights) for weight in weights]


def explain(prompt: list[int], num_new: int) -> list[dict[str, Any]]:
    text, found = list(prompt), []
    for _ in range(num_new):
        row = chances(text)
        text.append(max(range(VOCABULARY), key=row.__getitem__))
        found.append({"token": text[-1], "others": [[t, p] for t, p in enumerate(row)]})
    return found


@pytest.mark.parametrize("seed", range(20))
def test_partings_are_those_found_place_by_place(seed: int) -> None:
    rng = random.Random(seed)
    prompt = [1, 2, 3]
    tokens = [step["token"] for step in explain(prompt, 12)]
    for _ in range(rng.randrange(4)):
        tokens[rng.randrange(12)] = rng.randrange(VOCABULARY)
    expected = []
    for index, token in enumerate(tokens):
        row = chances(prompt + tokens[:index])
        if row[token] < max(row):
            expected.append((index, math.log(max(row) / row[token])))
    found = checks.partings(explain, prompt, tokens)
    assert [i for i, _ in found] == [i for i, _ in expected]
    assert [g for _, g in found] == pytest.approx([g for _, g in expected])


def test_a_token_beyond_the_alternatives_is_at_least_as_far_as_the_last() -> None:
    def short(prompt: list[int], num_new: int) -> list[dict[str, Any]]:
        return [{"token": 0, "others": [[0, 0.5], [1, 0.25]]} for _ in range(num_new)]

    assert checks.partings(short, [1], [0, 4]) == [(1, pytest.approx(math.log(2)))]


class Led:
    """A worker that makes the reference's tokens, but for one place."""

    def __init__(self, wrong_at: int | None) -> None:
        self.wrong_at = wrong_at

    def generate(self, prompts: list[list[int]], num_new: int, *, lookup: bool = False) -> Answer:
        text = list(prompts[0])
        for index in range(num_new):
            row = chances(text)
            order = sorted(range(VOCABULARY), key=row.__getitem__)
            text.append(order[0] if index == self.wrong_at else order[-1])
        return Answer(tokens=[text[-num_new:]], seconds=1, peak_mb=1, since_start=1)

    def ask(self, call: Mapping[str, Any]) -> Any:
        if call["do"] == "explain":
            return {"found": explain(call["prompt"], call["num_new"])}
        return {"nats": math.log(8.0) * sum(len(w) - 1 for w in call["windows"])}

    def close(self) -> None: ...


def test_a_check() -> None:
    texts = checks.Texts(prompts=[[1, 2], [3, 4]], windows=[[1] * 9, [2] * 5])
    good = checks.check(SIDES[1], Led(None), checks.remembered(Led(None)), texts)
    assert good.first_difference is None and not good.differs
    assert good.perplexity == pytest.approx(8.0) and good.shown() == "the same tokens"
    bad = checks.check(SIDES[1], Led(17), checks.remembered(Led(None)), texts)
    assert bad.first_difference == bad.gap_at == 17 and bad.differs
    assert bad.shown().startswith("differs at token 17 by ")
    near = checks.Check(
        first_difference=3, largest_gap=0.004, gap_at=5, perplexity=1.0, tolerance=0.01
    )
    assert not near.differs and near.shown() == "near-ties from token 3, 0.004 nats at most"
