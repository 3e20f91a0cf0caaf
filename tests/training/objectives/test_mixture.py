"""Which sequences of a batch each part of a mixture learns from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.training.objectives.test_contract import make
from tests.training.objectives.toys import PLAN, pack, toy_model

from anyorder.core.objective import Loss, Objective, TrainingBatch
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.planned_diffusion import PlannedDiffusion

PARTS = ["next_token", "masked_diffusion", "planned_diffusion"]
Seen = dict[type[Objective], list[list[int]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The sequences that each part is given."""
    found: Seen = {}
    for cls in (NextToken, MaskedDiffusion, PlannedDiffusion):

        def loss(
            self: Objective, model: Any, batch: TrainingBatch, rng: Any, cls: Any = cls
        ) -> Loss:
            found.setdefault(cls, []).extend(batch.tokens_BT.tolist())
            weight = float(len(batch.tokens_BT))
            total = torch.tensor(weight)
            return Loss(total=total, weight=weight, metrics={"nats": 2 * weight})

        monkeypatch.setattr(cls, "loss", loss)
    return found


def batch(num_plain: int, num_planned: int) -> TrainingBatch:
    planned = [PLAN.topic, 7, PLAN.topic_end, PLAN.span, 8, PLAN.span_end]
    plain = [[[row + place for place in range(6)]] for row in range(num_plain)]
    return pack(*plain, *[[planned]] * num_planned)


def counts(seen: Seen) -> list[int]:
    kinds = (NextToken, MaskedDiffusion, PlannedDiffusion)
    return [len(seen.get(kind, [])) for kind in kinds]


def test_shares_of_a_batch(seen: Seen) -> None:
    rng, drawn = torch.Generator().manual_seed(0), Counter[tuple[int, ...]]()
    for _ in range(300):
        found = make("mixture", parts=PARTS, shares=[5, 2, 1]).loss(toy_model(), batch(4, 0), rng)
        assert found.weight == 4 and found.metrics["nats"] == 8
        drawn[tuple(counts(seen))] += 1
        seen.clear()
    # 2.5, 1 and 0.5 of four, as evenly as that goes.
    assert set(drawn) == {(2, 1, 1), (3, 1, 0)}
    assert 110 < drawn[2, 1, 1] < 190
    make("mixture", parts=PARTS, shares=[5, 2, 1]).loss(toy_model(), batch(8, 0), rng)
    assert counts(seen) == [5, 2, 1]
    assert sorted(row for rows in seen.values() for row in rows) == sorted(
        batch(8, 0).tokens_BT.tolist()
    )


@pytest.mark.parametrize("shares", [[2.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
def test_plans_are_for_those_who_know_them(seen: Seen, shares: list[float]) -> None:
    rng = torch.Generator().manual_seed(0)
    found = make("mixture", parts=PARTS, shares=shares).loss(toy_model(), batch(12, 5), rng)
    num_plain = 12 * shares[2] / sum(shares)
    assert counts(seen)[2] == 5 + num_plain
    assert sum(PLAN.span in row for row in seen[PlannedDiffusion]) == 5
    # Each part's metric is a mean over its own sequences, whatever the others have.
    assert [found.metrics[name] / found.weight for name in PARTS] == [2.0, 2.0, 2.0]


def test_without_one_who_knows_plans_tags_are_words(seen: Seen) -> None:
    rng = torch.Generator().manual_seed(0)
    make("mixture", parts=PARTS[:2]).loss(toy_model(), batch(2, 2), rng)
    assert counts(seen) == [2, 2, 0]
