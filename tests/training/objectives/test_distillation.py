"""Distillation: its mix, its temperature, its gradients; the closed form is in test_contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.objectives.toys import ToyModel, pack, toy_model, words

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.sampling import row_costs
from anyorder.training.objectives.distillation import Distillation
from anyorder.training.objectives.next_token import NextToken

BATCH = pack([words(0, 9)], given=[(0, 0), (0, 1)])


def pair(**student: Any) -> ToyModel:
    teacher = toy_model(seed=5, spread=0.3, layers=toy_model().network.config.layers[:1])
    teacher.network.requires_grad_(False)
    return replace(toy_model(**student), teacher=teacher)


def logits(model: Any) -> torch.Tensor:
    """Of the rows before targets."""
    found: torch.Tensor = model.logits(model.hidden(dense_batch(BATCH.tokens_BT)))[1:8]
    return found.double()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("temperature", "text"), [(1.0, 0.0), (2.0, 0.3), (0.5, 1.0)])
def test_loss_and_gradient_are_torchs(direction: Any, temperature: float, text: float) -> None:
    model = pair()
    objective = Distillation(divergence=direction, temperature=temperature, text=text)
    found = objective.loss(model, BATCH, torch.Generator())
    found.total.backward()
    gradients = [p.grad for p in model.network.parameters()]
    model.network.zero_grad()
    ours, theirs = logits(model), logits(model.teacher)
    targets = BATCH.tokens_BT[0, 2:]

    def soft(heat: float) -> torch.Tensor:
        p, q = (theirs / heat).log_softmax(-1), (ours / heat).log_softmax(-1)
        first, second = (q, p) if direction == "forward" else (p, q)
        return F.kl_div(first, second, log_target=True, reduction="sum")

    nats = F.cross_entropy(ours, targets, reduction="sum")
    expected = (1 - text) * temperature**2 * soft(temperature) + text * nats
    expected.backward()
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for ours_grad, parameter in zip(gradients, model.network.parameters(), strict=True):
        torch.testing.assert_close(ours_grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert found.weight == 7
    assert found.metrics["divergence"] == pytest.approx(float(soft(1.0).detach()), rel=1e-5)
    assert found.metrics["nats"] == pytest.approx(float(nats.detach()), rel=1e-5)


def test_text_alone_is_next_token_prediction() -> None:
    model = pair()
    found = Distillation(text=1.0).loss(model, BATCH, torch.Generator())
    other = NextToken().loss(model, BATCH, torch.Generator())
    torch.testing.assert_close(found.total, other.total)
    assert found.weight == other.weight


def test_rows_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Distillation().loss(pair(), BATCH, torch.Generator())
    monkeypatch.setattr(row_costs, "KEPT_LOGITS", 2 * 61)
    monkeypatch.setattr(row_costs, "CHUNK_LOGITS", {"cpu": 2 * 61})
    pieces = Distillation().loss(pair(), BATCH, torch.Generator())
    torch.testing.assert_close(whole.total, pieces.total)


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    model = replace(pair(), teacher=toy_model(33))
    with pytest.raises(UserError, match="toy has 61 tokens and its teacher toy has 33"):
        Distillation().loss(model, BATCH, torch.Generator())
