"""Adversarial training: what each player's gradient is, over all texts there are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.training.objectives.scripted import (
    PROMPT,
    REFERENCE,
    TEXTS,
    Scripted,
    expected_gradients,
    logp,
    run,
    scripted,
)
from tests.training.objectives.toys import equip, pack, toy_model, words

from anyorder.core.batch import dense_batch
from anyorder.training.objectives import adversarial
from anyorder.training.objectives.adversarial import Adversarial

FEW = 6


def judged(model: Scripted, text: list[int]) -> torch.Tensor:
    """The discriminator's logit for a text behind the prompt, alone and without padding."""
    judge = model.companion
    assert judge is not None
    tokens = torch.tensor([[*PROMPT, *text]])
    return judge(judge.embedding(tokens), torch.ones(tokens.shape, dtype=torch.bool))[0]


def test_policy_gradient_is_that_of_the_expected_reward() -> None:
    objective = Adversarial(weight=0.8, channels=FEW)
    model = scripted(objective)
    value = -logp(model, REFERENCE).mean()
    for text in TEXTS:
        value = value - 0.8 * logp(model, text).sum().exp() * judged(model, text).sigmoid().detach()
    expected = torch.autograd.grad(value, list(model.network.parameters()))
    found = expected_gradients(objective, 2)
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["policy_gradient", "straight_through"])
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_discriminator_learns_to_tell_and_nothing_else(estimator: str, weight: float) -> None:
    objective = Adversarial(estimator=estimator, weight=weight, channels=FEW)  # type: ignore[arg-type]
    model = scripted(objective, [TEXTS[0], TEXTS[3]])
    assert model.companion is not None
    parameters = list(model.companion.parameters())
    found, _ = run(objective, model)
    logits = torch.stack([judged(model, text) for text in (REFERENCE, TEXTS[0], TEXTS[3])])
    labels = torch.tensor([1.0, 0.0, 0.0], dtype=logits.dtype)
    costs = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    expected = costs[0] + costs[1:].mean()
    torch.testing.assert_close(
        torch.autograd.grad(found.total, parameters), torch.autograd.grad(expected, parameters)
    )
    assert found.metrics["discriminator"] == pytest.approx(float(expected.detach()))
    hits = (logits > 0) == (labels > 0)
    told = (float(hits[0]) + float(hits[1:].float().mean())) / 2
    assert found.metrics["told_apart"] == pytest.approx(told)


def test_the_value_is_the_cross_entropy() -> None:
    objective = Adversarial(weight=3.0)
    model = scripted(objective, [TEXTS[0], TEXTS[3]])
    found, _ = run(objective, model)
    expected = -float(logp(model, REFERENCE).mean().detach())
    assert float(found.total.detach()) == pytest.approx(expected)
    assert found.metrics["nats"] == pytest.approx(float(found.total.detach())) and found.weight == 1


def test_padding_does_not_change_a_judgement() -> None:
    objective = Adversarial(channels=FEW)
    model = scripted(objective)
    assert model.companion is not None
    tokens = torch.tensor([[1, 0, 1, 0, 0, 1, 0]])
    there = torch.arange(7)[None] < 3
    padded = model.companion(model.companion.embedding(tokens), there)
    torch.testing.assert_close(padded[0], judged(model, [0, 1]))


def test_scores_are_gumbels_whose_largest_is_the_token() -> None:
    """Over tokens drawn from the model, each score is its logit with Gumbel noise: the mean is
    Euler's constant above the log-probability and the variance pi^2 / 6."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.tensor([1.0, -0.5, 0.3, -2.0])
    count = 100_000
    tokens = torch.multinomial(logits.softmax(-1), count, replacement=True, generator=rng)
    waits = -torch.rand((count, 4), generator=rng).clamp(min=1e-30).log()
    scores = adversarial._conditional_scores(logits.expand(count, 4), tokens, waits)
    assert torch.equal(scores.argmax(-1), tokens)
    noise = scores - logits.log_softmax(-1)
    assert (noise.mean(0) - 0.5772).abs().max() < 5 * 1.2825 / count**0.5
    assert (noise.var(0) - math.pi**2 / 6).abs().max() < 0.05


def test_straight_through_points_to_what_looks_real() -> None:
    """Biased, but much the same direction as the exact gradient, for texts of one token."""
    batch = pack([[1, 3]], given=[(0, 0)])
    objective = Adversarial(estimator="straight_through", weight=1.0, channels=FEW, num_samples=64)
    model = toy_model(5, mask=False, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        judge = objective.companion(model.abilities).double()
    parameters = list(model.network.parameters())

    def gradient(weight: float, seed: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        trained = replace(model, companion=judge)
        found = replace(objective, weight=weight).loss(trained, batch, rng)
        parts = torch.autograd.grad(found.total, parameters, allow_unused=True)
        return torch.cat([p.flatten() for p in parts if p is not None])

    pushes = [gradient(1.0, seed) - gradient(0.0, seed) for seed in range(20)]
    mean = torch.stack(pushes).mean(0)
    logp_V = model.logits(model.hidden(dense_batch(torch.tensor([[1]]))))[0].log_softmax(-1)
    tokens = torch.tensor([[1, token] for token in range(5)])
    there = torch.ones(5, 2, dtype=torch.bool)
    costs_V = F.softplus(-judge(judge.embedding(tokens), there)).detach()
    value = (logp_V.exp() * costs_V).sum()
    parts = torch.autograd.grad(value, parameters, allow_unused=True)
    expected = torch.cat([p.flatten() for p in parts if p is not None])
    assert F.cosine_similarity(mean, expected, dim=0) > 0.7


def test_documents_of_any_number_and_length() -> None:
    batch = pack([words(0, 5), words(1, 8)], [[3]], given=[(0, 0), (0, 1), (0, 5)])
    objective = Adversarial(channels=FEW)
    model = equip(toy_model(), objective)
    found = objective.loss(model, batch, torch.Generator())
    assert found.weight == 2 and found.total.isfinite()
    nothing = objective.loss(model, pack([[3]]), torch.Generator())
    assert nothing.weight == 0 and nothing.total == 0
