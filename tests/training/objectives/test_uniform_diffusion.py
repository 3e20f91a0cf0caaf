"""Uniform diffusion: the continuous-time bound is the limit of D3PM's in discrete time."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.training.objectives.closed_forms import predictions, uniform_diffusion
from tests.training.objectives.toys import ToyModel, pack, toy_model

from anyorder.core.batch import PackedBatch
from anyorder.training.objectives.uniform_diffusion import UniformDiffusion


def d3pm_bound(model: ToyModel, document: list[int], steps: int) -> float:
    """Sum over steps of KL between the posteriors q(z_s | z_t, x) of the text and of the model's
    guess, by Bayes' rule, over all z_t; levels rise by equal steps from 0 to 1."""
    size = model.abilities.vocabulary_size
    levels = torch.arange(steps + 1, dtype=torch.float64) / steps
    before, after = levels[:-1, None], levels[1:, None]  # [steps, 1]
    stays = (1 - after) / (1 - before)  # share that a single step keeps
    copies = [list(values) for values in itertools.product(range(size), repeat=len(document))]
    visible = torch.ones(len(document), len(document), dtype=torch.bool)
    guesses = predictions(model, copies, visible, ban=False).exp()
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    eye = torch.eye(size, dtype=torch.float64)
    total = 0.0
    for copy, guess in zip(copies, guesses, strict=True):
        probability = torch.ones(steps, dtype=torch.float64)
        divergence = torch.zeros(steps, dtype=torch.float64)
        for place, (clean, noisy) in enumerate(zip(document, copy, strict=True)):
            probability *= ((1 - after) * eye[clean] + after * uniform)[:, noisy]
            likelihood = stays * eye[noisy] + (1 - stays) * uniform  # of z_t, for every z_s
            posteriors = []
            for start in (eye[clean], guess[place]):
                joint = likelihood * ((1 - before) * start + before * uniform)
                posteriors.append(joint / joint.sum(-1, keepdim=True))
            true, predicted = posteriors
            divergence += (torch.xlogy(true, true) - torch.xlogy(true, predicted)).sum(-1)
        total += float((probability * divergence).sum())
    return total


@pytest.mark.parametrize("vocabulary", [2, 3])
def test_the_bound_is_the_limit_of_d3pm(vocabulary: int) -> None:
    model = toy_model(vocabulary, mask=False, seed=3)
    document = [1, 0, 1]
    exact = uniform_diffusion(UniformDiffusion(min_noise=1e-5), model, document, [0, 1, 2])
    coarse, fine = (d3pm_bound(model, document, steps) for steps in (1000, 4000))
    assert abs(fine - exact) < abs(coarse - exact)
    assert fine == pytest.approx(exact, rel=2e-3)


class Spy(ToyModel):
    """Remembers what it was given."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        object.__setattr__(self, "batch", batch)
        return super().hidden(batch)


def test_only_targets_are_replaced_at_the_level_drawn() -> None:
    model = toy_model(mask=False)
    spy = Spy(network=model.network, abilities=model.abilities)
    document = [60] * 100
    batch = pack([document], given=[(0, place) for place in range(50)])
    changed = 0
    for seed in range(20):
        UniformDiffusion(min_noise=0.4).loss(spy, batch, torch.Generator().manual_seed(seed))
        moved = spy.batch.tokens_N != 60  # type: ignore[attr-defined]
        assert not moved[:50].any()
        changed += int(moved.sum())
    # Levels between 0.4 and 0.6, and one draw of 61 gives the same token again.
    assert 0.4 * 1000 * 60 / 61 < changed < 0.6 * 1000 * 60 / 61


def test_a_perfect_guess_costs_nothing_and_float32_is_enough() -> None:
    model = toy_model(mask=False, tied_embeddings=False, head_bias=True)
    document = [17] * 40
    with torch.no_grad():
        model.network.head.bias[17] = 1e4
    batch = pack([document])
    for seed in range(30):
        for name in ("linear", "cosine", "square"):
            objective = UniformDiffusion(schedule=name, min_noise=1e-5)  # type: ignore[arg-type]
            found = objective.loss(model, batch, torch.Generator().manual_seed(seed))
            assert abs(found.metrics["nats"]) / found.weight < 2e-2
