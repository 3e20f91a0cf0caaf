"""Gibbs sampling against an enumerated joint distribution."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from tests.methods.enumerated import LENGTH, MASK, START, chi_square, enumerated_model, joint
from tests.tiny import assert_no_page_is_lost

from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine

JOINT = joint()


def predict(canvas: tuple[int, ...], _: int) -> torch.Tensor:
    return conditionals(canvas)


@functools.cache
def conditionals(canvas: tuple[int, ...]) -> torch.Tensor:
    """What the joint says of the masked place, if one place is masked. Of more it knows nothing, so
    that the first sweep is of little help, and what stands is told as it stands."""
    masked = [place for place, token in enumerate(canvas) if token == MASK]
    rows = torch.full((LENGTH, 3), -torch.inf)
    for place, token in enumerate(canvas):
        if len(masked) > 1:
            rows[place] = torch.tensor([0.0, -0.1, -0.2])
        elif masked == [place]:
            others = tuple(slice(None) if p == place else t for p, t in enumerate(canvas))
            rows[place] = JOINT[others].log().float()
        else:
            rows[place, token] = 0.0
    return rows


def generate(**fields: Any) -> Completion:
    engine = Engine(enumerated_model(predict), cache_tokens=8192, max_batch_tokens=4096)
    defaults = {"method": "gibbs", "max_new_tokens": LENGTH, "temperature": 1.0, "n": 1}
    completion = engine.generate(Request(**{"prompt": [START], **defaults, **fields}))
    assert_no_page_is_lost(engine)
    return completion


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_texts_are_draws_from_the_joint(order: str) -> None:
    def distance(sweeps: int) -> float:
        options = {"order": order, "burn_in": 0, "sweeps": sweeps}
        texts = [choice.tokens for choice in generate(n=300, options=options).choices]
        return chi_square(texts, JOINT)

    assert abs(distance(5)) < 3
    assert distance(1) > 8


def test_tokens_carry_their_conditional_probability() -> None:
    for seed in range(5):
        completion = generate(seed=seed, options={"order": "sequential"}, logprobs=3)
        text = completion.tokens
        # The last place was drawn given those before it as they are now.
        line = JOINT[text[0], text[1]]
        entry = completion.choices[0].trace[-1]
        assert entry.probability == pytest.approx(float(line[text[2]] / line.sum()), abs=1e-5)
        assert len(entry.alternatives) == 3


def test_at_temperature_0_it_climbs_to_where_no_place_can_do_better() -> None:
    for order in ("random", "sequential"):
        for seed in range(3):
            options = {"order": order, "sweeps": 900}
            completion = generate(seed=seed, temperature=0.0, options=options)
            assert completion.report.num_forward_passes < 30
            text = completion.tokens
            for place in range(LENGTH):
                line = JOINT[tuple(slice(None) if p == place else t for p, t in enumerate(text))]
                assert text[place] == int(line.argmax())


def test_burn_in_draws_from_the_whole_distribution() -> None:
    def texts(burn_in: int) -> set[tuple[int, ...]]:
        options = {"order": "sequential", "burn_in": burn_in, "sweeps": 1}
        completion = generate(n=40, top_k=1, options=options)
        return {tuple(choice.tokens) for choice in completion.choices}

    assert len(texts(0)) == 1
    assert len(texts(5)) > 1


def test_a_canvas_keeps_its_tokens_and_gives_the_conditional() -> None:
    options = {"burn_in": 0, "sweeps": 5}
    completion = generate(canvas=[None, 2, None], max_new_tokens=None, n=300, options=options)
    assert all(choice.tokens[1] == 2 for choice in completion.choices)
    expected = torch.zeros_like(JOINT)
    expected[:, 2] = JOINT[:, 2] / JOINT[:, 2].sum()
    assert abs(chi_square([choice.tokens for choice in completion.choices], expected)) < 3


def test_networks_with_a_token_shift() -> None:
    model = enumerated_model(predict)
    shifted = dataclasses.replace(model.abilities, token_shift=True)
    engine = Engine(dataclasses.replace(model, abilities=shifted), cache_tokens=256)
    request = Request(prompt=[START], method="gibbs", canvas=[2, None, 1])
    # What is told of the place before: that a 2 stands there.
    assert engine.generate(request).tokens == [2, 2, 1]
    assert generate(canvas=[2, None, 1], max_new_tokens=None, temperature=0.0).tokens == [
        2,
        int(JOINT[2, :, 1].argmax()),
        1,
    ]


def test_each_step_is_told_and_seeds_decide() -> None:
    texts = []
    for seed in (1, 2, 1):
        completion = generate(seed=seed, history=True, canvas=[None] * 3, max_new_tokens=None)
        assert len(completion.choices[0].history) == 10 * LENGTH
        last = {entry.place: entry.step for entry in completion.choices[0].history}
        steps = [entry.step for entry in completion.choices[0].trace]
        assert steps == [last[place] for place in range(LENGTH)] and len(set(steps)) == LENGTH
        texts.append([(entry.place, entry.token) for entry in completion.choices[0].history])
    assert texts[0] == texts[2] != texts[1]
