"""Scheduled sampling against token-by-token generation, and its schedules and gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.objectives.toys import ToyModel, pack, toy_model, words

from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.errors import UserError
from anyorder.core.objective import TrainingBatch
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.scheduled_sampling import ScheduledSampling


def always(**options: Any) -> ScheduledSampling:
    return ScheduledSampling(start=1.0, final=1.0, **options)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs_of(objective: ScheduledSampling, batch: TrainingBatch, seed: int = 0) -> torch.Tensor:
    """What the last pass read."""
    model = toy_model()
    seen: list[PackedBatch] = []

    class Spy(ToyModel):
        def hidden(self, batch: PackedBatch) -> torch.Tensor:
            seen.append(batch)
            return super().hidden(batch)

    objective.loss(Spy(network=model.network, abilities=model.abilities), batch, rng(seed))
    return seen[-1].tokens_N.view(batch.tokens_BT.shape)


def test_schedules() -> None:
    def values(**options: Any) -> list[float]:
        objective = ScheduledSampling(start=0.1, final=0.9, **options)
        return [objective.probability(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]

    assert values() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    exponential = values(schedule="exponential", steepness=3.0)
    expected = [0.1 + 0.8 * (1 - math.exp(-3 * p / 4)) / (1 - math.exp(-3)) for p in range(5)]
    assert exponential == pytest.approx(expected)
    sigmoid = values(schedule="inverse_sigmoid", steepness=4.0)
    ends = [1 / (1 + math.exp(4.0)), 1 / (1 + math.exp(-4.0))]
    expected = [
        0.1 + 0.8 * (1 / (1 + math.exp(-8 * (p / 4 - 0.5))) - ends[0]) / (ends[1] - ends[0])
        for p in range(5)
    ]
    assert sigmoid == pytest.approx(expected)


def test_progress_decides_how_many_are_replaced() -> None:
    batch = pack(*([words(row, 30)] for row in range(20)))
    shares = []
    for progress in (0.0, 0.5, 1.0):
        objective = ScheduledSampling(start=0.1, final=0.8)
        found = objective.loss(toy_model(), replace(batch, progress=progress), rng())
        shares.append(found.metrics["replaced"] / found.weight)
    assert shares == pytest.approx([0.1, 0.45, 0.8], abs=0.06)


def test_without_replacement_it_is_next_token() -> None:
    batch = pack([words(0, 5), words(1, 9)])
    found = ScheduledSampling().loss(toy_model(), batch, rng())
    expected = NextToken().loss(toy_model(), batch, rng())
    assert torch.equal(found.total, expected.total) and found.weight == expected.weight


def test_first_tokens_and_given_ones_are_never_replaced() -> None:
    batch = pack([words(0, 6), words(1, 9)], given=[(0, 2), (0, 3), (0, 9)])
    inputs = inputs_of(always(prediction="argmax"), batch)
    kept = [0, 2, 3, 6, 9]
    assert torch.equal(inputs[0, kept], batch.tokens_BT[0, kept])
    assert int((inputs != batch.tokens_BT).sum()) > 6


@torch.no_grad()
def test_one_pass_reads_predictions_behind_the_text_itself() -> None:
    tokens = words(0, 12)
    inputs = inputs_of(always(prediction="argmax"), pack([tokens]))
    model = toy_model()
    logits = model.logits(model.hidden(dense_batch(torch.tensor([tokens]))))
    assert inputs[0].tolist() == [tokens[0], *logits[:-1].argmax(-1).tolist()]


@pytest.mark.parametrize("prediction", ["argmax", "sampled"])
def test_as_many_passes_as_tokens_are_generation(prediction: str) -> None:
    """Every token drawn behind those drawn before: further passes change nothing any more."""
    batch = pack([words(0, 8)])
    enough = inputs_of(always(prediction=prediction, passes=7), batch)
    assert torch.equal(enough, inputs_of(always(prediction=prediction, passes=9), batch))
    assert not torch.equal(enough, inputs_of(always(prediction=prediction), batch))
    if prediction == "argmax":
        model = toy_model()
        options: dict[str, Any] = {"max_new_tokens": 7, "temperature": 0.0, "rng": rng()}
        (text,) = model.generate([[words(0, 8)[0]]], **options)
        assert enough[0, 1:].tolist() == text


@torch.no_grad()
def test_sampled_predictions_follow_the_model() -> None:
    tokens, count = words(0, 3), 4000
    batch = pack(*([tokens] for _ in range(count)))
    drawn = inputs_of(always(temperature=1.5), batch)[:, 2]
    model = toy_model()
    logits = model.logits(model.hidden(dense_batch(torch.tensor([tokens]))))
    expected = (logits[1] / 1.5).softmax(-1)
    found = torch.bincount(drawn, minlength=61) / count
    assert (found - expected).abs().max() < 4.5 * float((expected.max() / count).sqrt())


def test_mixtures_are_weighted_embeddings() -> None:
    """Written out by hand with the embedding table."""
    model, tokens = toy_model(), words(0, 6)
    found = always(prediction="mixed", top=3, temperature=0.7).loss(model, pack([tokens]), rng())
    logits = model.logits(model.hidden(dense_batch(torch.tensor([tokens]))))
    top = (logits[:-1] / 0.7).topk(3)
    table = model.network.embedding.weight
    mixed = (table[top.indices] * top.values.softmax(-1).double()[..., None]).sum(1)
    inputs = torch.cat((table[tokens[:1]], mixed))
    model.network.embed = lambda tokens_N: inputs  # type: ignore[method-assign]
    logits = model.logits(model.hidden(dense_batch(torch.tensor([tokens]))))
    expected = F.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="sum")
    torch.testing.assert_close(found.total, expected)


def gradients(objective: ScheduledSampling) -> list[torch.Tensor]:
    model = toy_model()
    total = objective.loss(model, pack([words(0, 6)]), rng()).total
    return list(torch.autograd.grad(total, list(model.network.parameters())))


def test_a_mixture_of_one_is_its_argmax() -> None:
    for through in ("last", "all"):
        mixed = gradients(always(prediction="mixed", top=1, through=through))
        torch.testing.assert_close(mixed, gradients(always(prediction="argmax")))


def test_gradients_flow_through_all_passes_if_asked() -> None:
    """Against finite differences, which know of all passes."""
    objective = always(prediction="mixed", top=61, passes=2, through="all")
    model, batch = toy_model(), pack([words(0, 5)])
    parameter = model.network.layers[0].mlp.down.weight
    objective.loss(model, batch, rng()).total.backward()
    assert parameter.grad is not None
    direction = parameter.grad / parameter.grad.norm()
    values = []
    step = 3e-3
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(sign * step * direction)
            values.append(float(objective.loss(model, batch, rng()).total))
            parameter.sub_(sign * step * direction)
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(parameter.grad.norm()), rel=1e-3)
    (last,) = torch.autograd.grad(
        replace(objective, through="last").loss(model, batch, rng()).total, [parameter]
    )
    assert not torch.allclose(last, parameter.grad, rtol=1e-2)


@pytest.mark.parametrize("prediction", ["argmax", "sampled", "mixed"])
def test_a_batch_without_anything_to_replace(prediction: str) -> None:
    batch = pack([words(0, 5)], given=[(0, place) for place in range(5)])
    found = always(prediction=prediction).loss(toy_model(), batch, rng())
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.total == 0 and found.weight == 0


def test_gradients_through_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="no gradient flows through sampled predictions"):
        ScheduledSampling(through="all")
