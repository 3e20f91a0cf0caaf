"""Masked diffusion: its bound is the chain rule in a random order; what it asks of the model."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.training.objectives.closed_forms import masked_diffusion, predictions
from tests.training.objectives.toys import ToyModel, mean_loss, pack, repeat, toy_model, words

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import InvalidRequest
from anyorder.sampling.noise import MaskSchedule
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion


def test_the_bound_is_the_mean_chain_rule_over_all_orders() -> None:
    model = toy_model(3, seed=3)
    document, mask = [1, 0, 0, 1], 2
    visible = torch.ones(4, 4, dtype=torch.bool)
    costs = []
    for order in itertools.permutations(range(4)):
        canvas, cost = [mask] * 4, 0.0
        for place in order:
            found = predictions(model, [canvas], visible, ban=True)[0, place]
            cost -= float(found[document[place]])
            canvas[place] = document[place]
        costs.append(cost)
    bound = masked_diffusion(MaskedDiffusion(min_noise=0.0), model, document, [0, 1, 2, 3])
    assert bound == pytest.approx(sum(costs) / len(costs), rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "counts"])
def test_both_ways_to_draw_masks_estimate_that_bound(schedule: MaskSchedule) -> None:
    model = toy_model(3, seed=3)
    batch = repeat(pack([[1, 0, 0, 1]]), 64)
    objective = MaskedDiffusion(min_noise=0.0)
    exact = masked_diffusion(objective, model, [1, 0, 0, 1], [0, 1, 2, 3])
    mean, error = mean_loss(MaskedDiffusion(schedule=schedule), model, batch, draws=60)
    assert error < 0.02 * exact * 64
    assert abs(mean - exact * 64) < 4 * error + 2e-3 * exact * 64


class Spy(ToyModel):
    """Remembers what it was given."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        object.__setattr__(self, "batch", batch)
        return super().hidden(batch)


def test_only_targets_are_masked_and_attention_is_bidirectional_within_documents() -> None:
    model = toy_model()
    spy = Spy(network=model.network, abilities=model.abilities)
    batch = pack([words(0, 3), words(1, 4)], given=[(0, 1), (0, 5)], length=8)
    found = MaskedDiffusion(min_noise=1.0).loss(spy, batch, torch.Generator())
    seen: PackedBatch = spy.batch  # type: ignore[attr-defined]
    mask = model.abilities.mask_token
    expected = torch.where(batch.targets_BT, mask, batch.tokens_BT)
    assert torch.equal(seen.tokens_N, expected.flatten())
    assert seen.positions_N.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4), torch.ones(1, 1))
    assert torch.equal(seen.groups[0].visible_RQK, blocks.bool()[None])
    assert found.weight == 5


def test_the_mask_token_is_never_predicted() -> None:
    model = toy_model(tied_embeddings=False, head_bias=True)
    batch = pack([words(0, 12)])
    losses = []
    for bias in (0.0, 50.0):
        with torch.no_grad():
            model.network.head.bias[model.abilities.mask_token] = bias
        losses.append(MaskedDiffusion().loss(model, batch, torch.Generator().manual_seed(1)))
    assert losses[0].total == losses[1].total > 0


def test_no_mask_at_all_costs_nothing() -> None:
    model = toy_model()
    batch = pack([words(0, 4)], given=[(0, place) for place in range(4)])
    found = MaskedDiffusion().loss(model, batch, torch.Generator())
    found.total.backward()
    assert found.total == 0 and found.weight == 0


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="schedule must be one of linear, cosine, square"):
        MaskedDiffusion(schedule="sqrt")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="min_noise must be a number from"):
        MaskedDiffusion(min_noise=1.5)
