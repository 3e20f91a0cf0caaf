"""Temperature and truncation, both ways of computing them, against definition and transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from anyorder.core.request import Request
from anyorder.sampling import truncation
from anyorder.sampling import weights as weights_module
from anyorder.sampling.truncation import shape
from anyorder.sampling.weights import weigh

SIZE = 9_000
"""Beyond the largest prefix that is looked at before a whole vocabulary is sorted."""


def on_device(scores, rows):
    """Probabilities by the classes for accelerators, all rows at once."""
    return shape(scores.clone(), rows).double().softmax(-1)


def on_host(scores, rows):
    """Probabilities by the function for one row in main memory."""
    result = torch.zeros(scores.shape, dtype=torch.float64)
    for index, row in enumerate(rows):
        ids, weights = weigh(scores[index].numpy(), row.request)
        where = slice(None) if ids is None else torch.from_numpy(ids)
        assert ids is None or (np.diff(ids) > 0).all()
        result[index, where] = torch.from_numpy(weights / weights.sum())
    return result


PLACES = pytest.mark.parametrize("place", [on_host, on_device])


def naive(scores, controls):
    """Probabilities by the definitions, one token at a time in float64."""
    request = Request(prompt="x", **controls)
    logits = scores.astype(np.float64)
    logits = (logits - logits.max()) / request.temperature

    def probabilities():
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def keep(keys, mass):
        order = sorted(range(len(keys)), key=lambda token: -keys[token])
        chances, total, last = probabilities(), 0.0, order[-1]
        for token in order:
            total += chances[token]
            if total >= mass:
                last = token
                break
        logits[keys < keys[last]] = -np.inf

    if request.top_k:
        kth = sorted(logits, reverse=True)[min(request.top_k, len(logits)) - 1]
        logits[logits < kth] = -np.inf
    if request.top_p < 1:
        keep(logits.copy(), request.top_p)
    if request.min_p:
        chances = probabilities()
        logits[chances < request.min_p * chances.max() * (1 - 1e-12)] = -np.inf
    if request.typical_p < 1:
        chances = probabilities()
        surprise = [-math.log(chance) if chance else math.inf for chance in chances]
        entropy = sum(p * s for p, s in zip(chances, surprise, strict=True) if p)
        keep(-np.abs(np.array(surprise) - entropy), request.typical_p)
    return probabilities()


SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 3.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 1.0, "top_k": SIZE - 1},
    {"temperature": 1.0, "top_p": 0.1},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 5.0, "top_p": 0.5},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 1.0, "min_p": 0.01},
    {"temperature": 0.5, "min_p": 0.2},
    {"temperature": 1.0, "typical_p": 0.2},
    {"temperature": 1.5, "typical_p": 0.95},
    {"temperature": 6.0, "typical_p": 0.97},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    {"temperature": 0.8, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 100, "min_p": 0.05, "typical_p": 0.8},
    {"temperature": 1.2, "top_k": 700, "top_p": 0.95, "min_p": 0.001, "typical_p": 0.9},
]


def chain(controls):
    """transformers' processors for these controls, in the order of `generate`."""
    kinds = {
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
        "typical_p": theirs.TypicalLogitsWarper,
    }
    return [kinds[name](controls[name]) for name in kinds if name in controls]


@PLACES
@pytest.mark.parametrize("banned", [0.0, 0.999])
def test_mixed_rows(place, banned, make_row, random_logits):
    """All settings in one batch, with and without most of the vocabulary banned before."""
    scores = random_logits(len(SETTINGS), size=SIZE)
    scores[
        torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < banned
    ] = -math.inf
    before = scores.clone()
    result = place(scores, [make_row(**controls) for controls in SETTINGS])
    assert torch.equal(scores, before)
    for line, row, controls in zip(result, scores, SETTINGS, strict=True):
        expected = torch.from_numpy(naive(row.numpy(), controls))
        torch.testing.assert_close(line, expected, rtol=1e-5, atol=1e-12, msg=str(controls))
        row = row[None]
        for processor in chain(controls):
            row = processor(None, row)
        torch.testing.assert_close(line[None], row.double().softmax(-1), rtol=1e-5, atol=1e-12)


def test_rows_without_a_control_are_bit_identical(make_row, random_logits):
    scores = random_logits(10, size=SIZE)
    rows = [
        make_row(temperature=1.0) if index % 2 else make_row(top_k=3, top_p=0.5, min_p=0.9)
        for index in range(10)
    ]
    rows[3] = make_row(temperature=0.5, top_k=9, top_p=0.5, min_p=0.1, typical_p=0.5)
    result = shape(scores.clone(), rows)
    for index in range(10):
        assert torch.equal(result[index], scores[index]) == (index != 3)


def test_controls_off_cost_nothing(make_row):
    for kind in truncation.SHAPERS:
        assert kind.for_rows([make_row(temperature=1.0), make_row(top_p=0.5)], SIZE) is None


@PLACES
def test_a_row_does_not_depend_on_its_neighbours(place, make_row, random_logits):
    scores = random_logits(len(SETTINGS), size=SIZE)
    rows = [make_row(**controls) for controls in SETTINGS]
    together = place(scores, rows)
    for index, row in enumerate(rows):
        assert torch.equal(place(scores[index : index + 1], [row])[0], together[index])


@PLACES
@pytest.mark.parametrize(
    "controls",
    [{"top_p": 0.0}, {"typical_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 1e-300}],
)
def test_extremes_keep_one_token(place, controls, make_row, random_logits):
    scores = random_logits(1, size=SIZE) * 10
    result = place(scores, [make_row(**{"temperature": 1.0, **controls})])
    assert result.max() == 1.0
    if "typical_p" not in controls:
        assert result.argmax() == scores.argmax()


@PLACES
@pytest.mark.parametrize("controls", [{"top_k": 10**9}, {"min_p": 1e-300}])
def test_extremes_keep_everything(place, controls, make_row, random_logits):
    scores = random_logits(1, size=SIZE)
    result = place(scores, [make_row(temperature=1.0, **controls)])
    torch.testing.assert_close(result, scores.double().softmax(-1), rtol=1e-6, atol=0)


@PLACES
@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_a_mass_that_rounding_keeps_out_of_reach_keeps_everything(place, name, make_row):
    scores = torch.full((1, SIZE), 0.1)
    scores[0, :3] = torch.tensor([1.0, 2.0, 3.0])
    result = place(scores, [make_row(temperature=1.0, **{name: math.nextafter(1.0, 0.0)})])
    assert (result > 0).all()


@PLACES
@pytest.mark.parametrize(
    "controls", [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 1.0}, {"typical_p": 0.3}]
)
def test_ties_stay_together(place, controls, make_row):
    """Whatever the number of equal scores, all of them are kept or dropped."""
    scores = torch.zeros(1, SIZE)
    scores[0, 17:5000] = 4.0
    result = place(scores, [make_row(temperature=1.0, **controls)])
    assert (result[0] > 0).nonzero()[:, 0].tolist() == list(range(17, 5000))


@pytest.mark.parametrize(("mass", "least"), [(0.0, 8.0), (0.5, 8.0), (0.5001, 3.0), (1.0, 1.0)])
def test_a_mass_reached_exactly_is_enough(mass, least):
    keys, weights = np.array([1.0, 8.0, 3.0]), np.array([0.25, 0.5, 0.25])
    assert weights_module._reach(keys, weights, mass) == least
    tensors = torch.from_numpy(keys)[None], torch.from_numpy(weights)[None]
    masses = torch.tensor([[mass]], dtype=torch.float64)
    assert truncation._reach(*tensors, masses).item() == least
