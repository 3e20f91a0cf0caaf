"""Exposure bias against sums over all texts of two symbols, and its picture."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from tests.training.objectives.rollout_forms import all_texts, logits_of
from tests.training.objectives.toys import ToyModel, pack, tiniest_model, toy_model, words

from anyorder.core.errors import UserError
from anyorder.evaluation.exposure import Exposure, measure_exposure
from anyorder.evaluation.exposure_picture import exposure_svg

PROMPT, LENGTH = [1], 3


def oracle() -> ToyModel:
    """Another model of the same two symbols."""
    other = tiniest_model(2, mask=False)
    with torch.no_grad():
        for number, parameter in enumerate(other.network.parameters()):
            parameter.mul_(0.6 + 0.2 * (number % 3))
    return other


def drawn(model: ToyModel, count: int) -> list[list[list[int]]]:
    """Rows of one document each, by the model."""
    rng = torch.Generator().manual_seed(1)
    texts = model.generate([PROMPT] * count, max_new_tokens=LENGTH, temperature=1.0, rng=rng)
    return [[[*PROMPT, *text]] for text in texts]


def exact(model: ToyModel, judge: ToyModel, writer: ToyModel) -> tuple[list[float], list[float]]:
    """Cross-entropy and divergence at every step, behind everything that `writer` may write."""
    loss, error = [0.0] * LENGTH, [0.0] * LENGTH
    for text, chance in all_texts(writer, PROMPT, LENGTH).items():
        ours = logits_of(model, [*PROMPT, *text]).log_softmax(-1)
        theirs = logits_of(judge, [*PROMPT, *text]).log_softmax(-1)
        for step, symbol in itertools.product(range(LENGTH), range(2)):
            log_o, log_p = float(theirs[step, symbol]), float(ours[step, symbol])
            loss[step] -= chance * math.exp(log_o) * log_p
            error[step] += chance * math.exp(log_o) * (log_o - log_p)
    return loss, error


def test_means_are_sums_over_all_texts() -> None:
    model, judge = tiniest_model(2, mask=False), oracle()
    batches = [pack(*drawn(judge, 4000))]
    found = measure_exposure(
        model, judge, batches, prompt_length=1, length=LENGTH, num_samples=2, seed=3
    )
    assert found.num_texts == 8000
    for name, writer in (("gold", judge), ("own", model)):
        loss, error = exact(model, judge, writer)
        assert getattr(found, f"{name}_loss") == pytest.approx(loss, rel=0.04)
        assert getattr(found, f"{name}_error") == pytest.approx(error, rel=0.04)
    own, gold = exact(model, judge, model)[1], exact(model, judge, judge)[1]
    for steps in (1, 2, 3):
        mean = sum(gold[:steps]) / steps
        expected = 100 * (sum(own[:steps]) - steps * mean) / (steps * mean)
        error = found.excess_standard_error[steps - 1]
        assert abs(found.excess[steps - 1] - expected) < 4 * error + 1e-3
        assert error < 5
        assert found.accumulated[steps - 1] == pytest.approx(
            steps * (1 + found.excess[steps - 1] / 100)
        )
        assert found.ratio[steps - 1] == pytest.approx(
            found.own_error[steps - 1] / found.gold_error[steps - 1]
        )
    assert found.excess[0] == pytest.approx(0, abs=1e-6), "the first prefix is the prompt"


def test_an_oracle_judging_itself_finds_no_error() -> None:
    model = toy_model()
    batch = pack([words(0, 9), words(1, 9)], [words(2, 9), words(3, 4)])
    found = measure_exposure(model, toy_model(), [batch], prompt_length=3, length=6)
    assert found.num_texts == 3 and found.prompt_length == 3
    assert all(abs(error) < 1e-6 for error in (*found.own_error, *found.gold_error))


def test_the_standard_error_is_how_much_it_scatters() -> None:
    model, judge = tiniest_model(2, mask=False), oracle()
    batches = [pack(*drawn(judge, 100))]
    measured = [
        measure_exposure(model, judge, batches, prompt_length=1, length=LENGTH, seed=seed)
        for seed in range(25)
    ]
    own = torch.tensor([each.own_error for each in measured]).sum(1)
    scatter = 100 * float(own.std()) / sum(measured[0].gold_error)
    # The error counts the choice of gold texts too, which these runs share.
    stated = measured[0].excess_standard_error[-1]
    assert 0.5 * scatter < stated < 3 * scatter


def test_refused() -> None:
    model = toy_model()
    with pytest.raises(UserError, match="needs an oracle with the model's own tokenizer"):
        measure_exposure(model, toy_model(30), [pack([words(0, 9)])])
    with pytest.raises(UserError, match="fewer than two documents have 16 tokens"):
        measure_exposure(model, toy_model(), [pack([words(0, 9)])])


def test_picture() -> None:
    exposure = Exposure(
        gold_loss=(2.0, 2.1),
        own_loss=(2.0, 2.3),
        gold_error=(0.1, 0.1),
        own_error=(0.1, 0.3),
        excess_standard_error=(0.0, 5.0),
        prompt_length=16,
        num_texts=70,
    )
    assert exposure.excess == pytest.approx((0, 100)) and exposure.ratio == pytest.approx((1, 3))
    svg = exposure_svg("a <model>", exposure)
    ElementTree.fromstring(svg)
    shown = svg.replace("\u00a0", " ")
    assert "exposure bias of a &lt;model&gt;" in shown and "70 texts behind prompts of 16" in shown
    assert "100.0 ± 5.0 after 2 steps" in shown
