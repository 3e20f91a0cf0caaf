"""The contract of every training objective, applied to each by merely existing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.training.objectives.closed_forms import CLOSED_FORMS, closed_form
from tests.training.objectives.toys import (
    each,
    equip,
    mean_loss,
    pack,
    repeat,
    tiniest_model,
    toy_model,
    with_encoder,
    words,
)

from anyorder.core import lookup
from anyorder.core.errors import UserError
from anyorder.core.objective import Loss, Objective, TrainingBatch
from anyorder.core.options import build, describe
from anyorder.training.objectives.next_token import NextToken

# Trained on networks of kinds of their own: see test_drafters.py, test_fastbert.py, test_calm.py.
OTHERS = ("medusa", "eagle", "block_drafter", "fastbert", "calm_autoencoder", "calm_energy")
NAMES = tuple(name for name in lookup.names("training/objectives") if name not in OTHERS)

# Beyond the defaults: options worth testing.
CASES: dict[str, list[dict[str, Any]]] = {
    "masked_diffusion": [
        {"schedule": "cosine"},
        {"schedule": "square", "min_noise": 0.0},
        {"min_noise": 0.4},
    ],
    "uniform_diffusion": [{"schedule": "cosine", "min_noise": 0.02}, {"schedule": "square"}],
    "encoder_decoder": [{"label_smoothing": 0.2}],
    "mask_predict": [
        {"label_smoothing": 0.2, "length_weight": 0.0},
        {"weighting": "likelihood"},
        {"masking": "all"},
        {"masking": "glancing"},
        {"masking": "glancing", "first_ratio": 1.0, "label_smoothing": 0.1},
    ],
    "dag": [{"glancing": True}],
    "insertion": [{"label_smoothing": 0.2}],
    "distillation": [{"divergence": "reverse", "temperature": 2.0}, {"text": 0.4}],
    "block_diffusion": [
        {"block_size": 2},
        {"block_size": 3, "schedule": "cosine"},
        {"block_size": 2, "schedule": "square", "min_noise": 0.3, "max_noise": 0.8},
        {"block_size": 1, "min_noise": 1.0},
        {"block_size": 2, "clean": "causal"},
        {"block_size": 3, "clean": "causal", "next_token": 0.5},
    ],
    "mixture": [
        {
            "parts": ["masked_diffusion", "uniform_diffusion", "next_token"],
            "shares": [1.0, 3.0, 2.0],
        },
        {"parts": [{"name": "block_diffusion", "block_size": 2}, "next_token"]},
    ],
    "span_infill": [{"rate": 1.0, "suffix_first": 0.2}, {"rate": 0.0}],
    "scheduled_sampling": [
        {"start": 0.6, "prediction": "argmax"},
        {"start": 0.4, "temperature": 0.8},
    ],
    "policy_gradient": [
        {"estimator": "self_critical", "num_samples": 1, "likelihood": 0.0},
        {"estimator": "grpo", "temperature": 1.5},
        {"estimator": "minimum_risk", "sharpness": 1.0},
    ],
    "adversarial": [{"estimator": "straight_through"}],
}
# Options that an objective does not do without.
NEEDED: dict[str, dict[str, Any]] = {
    "mixture": {
        "parts": [
            {"name": "block_diffusion", "block_size": 2, "clean": "causal", "next_token": 1.0},
            "masked_diffusion",
        ]
    }
}
# Steps to learn twenty tokens by heart, for those that need more, or whose steps take long.
STEPS = {"dag": 220, "span_infill": 180, "policy_gradient": 75, "adversarial": 75}
# What is left where not all can be known by heart: where a suffix begins is drawn. How many tokens
# are missing between two takes far longer: neither of the two tells anything by itself.
LEFT = {"span_infill": 0.3, "insertion": 0.7}
# Times that a mean is estimated over, for those that take long and scatter little.
DRAWS = {"policy_gradient": 8, "adversarial": 2}
ALL = [(name, options) for name in NAMES for options in ({}, *CASES.get(name, []))]


def make(name: str, **options: object) -> Objective:
    options = {**NEEDED.get(name, {}), **options}
    return build(lookup.find("training/objectives", name, kind="objective"), options)


def loss(objective: Objective, batch: TrainingBatch, seed: int = 0, **model: Any) -> Loss:
    rng = torch.Generator().manual_seed(seed)
    return objective.loss(equip(toy_model(**model), objective), batch, rng)


def two_rows() -> TrainingBatch:
    """Documents of different lengths, padding, and tokens that are only given."""
    return pack(
        [words(0, 9), words(1, 6)], [words(2, 4), words(3, 8)], given=[(0, 0), (0, 1), (1, 4)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_is_described_and_has_a_closed_form(name: str) -> None:
    objective = make(name)
    assert name in CLOSED_FORMS
    assert objective.attention in ("causal", "bidirectional")
    assert all(option.description for option in describe(type(objective)))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_and_every_parameter_has_a_gradient(name: str) -> None:
    objective, batch = make(name), two_rows()
    model = equip(toy_model(tied_embeddings=False), objective)
    found = objective.loss(model, batch, torch.Generator().manual_seed(0))
    found.total.backward()
    assert found.total.isfinite() and found.total.shape == ()
    assert 0 < found.weight <= int(batch.targets_BT.sum())
    assert all(math.isfinite(value) for value in found.metrics.values())
    parameters = [*model.network.named_parameters()]
    parameters += [] if model.companion is None else [*model.companion.named_parameters()]
    for parameter_name, parameter in parameters:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_draws_give_the_same_loss(name: str) -> None:
    first, again = (loss(make(name), two_rows(), seed=4) for _ in range(2))
    assert torch.equal(first.total, again.total) and first.metrics == again.metrics


@pytest.mark.parametrize("name", NAMES)
def test_twenty_tokens_are_learnt_by_heart(name: str) -> None:
    # With rotary positions alone, the places of a text that is all masks would look alike.
    objective = make(name)
    model = equip(toy_model(spread=0.1, learned_positions=32), objective)
    parameters = [*model.network.parameters()]
    parameters += [] if model.companion is None else [*model.companion.parameters()]
    batch = repeat(pack([words(0, 20)]), 4)
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    history = []
    for _ in range(STEPS.get(name, 110)):
        found = objective.loss(model, batch, rng)
        optimizer.zero_grad()
        (found.total / found.weight).backward()
        optimizer.step()
        history.append(float(found.total.detach()) / found.weight)
    # A divergence has no part that would be there however good the model.
    assert history[0] > (1.0 if name == "distillation" else 3.0)
    assert sum(history[-10:]) / 10 < LEFT.get(name, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_two_halves_add_up_to_the_whole(name: str) -> None:
    objective, whole = make(name), two_rows()
    model = equip(toy_model(), objective)
    halves = [each(whole, lambda tensor, row=row: tensor[row : row + 1]) for row in (0, 1)]
    rng = torch.Generator()
    weights = [objective.loss(model, batch, rng).weight for batch in (whole, *halves)]
    assert weights[0] == weights[1] + weights[2]
    draws = DRAWS.get(name, 60)
    together, error = mean_loss(objective, model, whole, draws=draws)
    parts = [
        mean_loss(objective, model, half, draws=draws, seed=1 + i) for i, half in enumerate(halves)
    ]
    error = math.hypot(error, *(e for _, e in parts))
    assert error < 0.2 * together
    assert abs(together - parts[0][0] - parts[1][0]) < 4 * error + 1e-4


@pytest.mark.parametrize(("name", "options"), ALL)
def test_documents_do_not_leak(name: str, options: dict[str, Any]) -> None:
    for changed, places in ((0, range(7)), (1, range(7, 15))):  # before the targets, then behind
        totals = []
        for seed in (1, 2):
            documents = [words(5, 7), words(6, 8)]
            documents[changed] = words(10 + seed, len(documents[changed]))
            batch = pack(documents, given=[(0, place) for place in places])
            totals.append(loss(make(name, **options), batch).total)
        assert totals[0] == totals[1] and totals[0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    batch = pack([words(0, 6)], [words(1, 9)])
    other = replace(batch, tokens_BT=torch.where(batch.documents_BT < 0, 33, batch.tokens_BT))
    assert not torch.equal(batch.tokens_BT, other.tokens_BT)
    assert torch.equal(loss(make(name), batch).total, loss(make(name), other).total)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_the_mean_over_draws_is_the_closed_form(name: str, options: dict[str, Any]) -> None:
    objective = make(name, **options)
    symbols = 2
    mask = objective.needs_mask_token
    model = equip(tiniest_model(symbols + mask, mask=mask), objective)
    document, targets = [1, 0, 0, 1, 1], [1, 2, 3, 4]
    # Behind another document, before padding, its first token given.
    copies = 400
    row = pack([[0, 1, 1], document], given=[(0, place) for place in range(4)], length=9)
    batch = repeat(row, copies)
    mean, error = mean_loss(objective, model, batch, draws=DRAWS.get(name, 30))
    expected = closed_form(name, objective, model, document, targets)
    assert error < 0.03 * mean
    assert abs(mean / copies - expected) < 4 * error / copies + 1e-5 * expected


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_a_mask_token_refuses_models_without_one(name: str) -> None:
    objective = make(name)
    if objective.needs_mask_token:
        with pytest.raises(UserError, match="needs a mask token; toy has none"):
            objective.check(equip(toy_model(mask=False), objective).abilities)
    else:
        objective.check(equip(toy_model(mask=False), objective).abilities)
        assert loss(objective, two_rows(), mask=False).total.isfinite()
    objective.check(equip(toy_model(), objective).abilities)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_for_encoder_decoders_and_nothing_else(name: str) -> None:
    objective = make(name)
    if objective.needs_sources:
        with pytest.raises(UserError, match=r"learns from pairs .* toy has no encoder"):
            objective.check(toy_model().abilities)
        batch = replace(two_rows(), sources_BS=None, source_documents_BS=None)
        with pytest.raises(UserError, match="the data have no sources"):
            loss(objective, batch)
    else:
        with pytest.raises(UserError, match="toy"):
            objective.check(with_encoder(toy_model()).abilities)


def test_the_contract_can_fail() -> None:
    """The causal fast path would leak, were it taken for two documents."""
    batch = pack([words(5, 7), words(6, 8)])
    joined = TrainingBatch(
        tokens_BT=batch.tokens_BT,
        documents_BT=torch.zeros_like(batch.documents_BT),
        targets_BT=batch.targets_BT,
    )
    assert loss(NextToken(), batch).metrics != loss(NextToken(), joined).metrics
