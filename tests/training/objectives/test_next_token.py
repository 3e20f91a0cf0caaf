"""Next-token prediction against torch's own cross-entropy and against inference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.training.objectives.toys import ToyModel, pack, repeat, toy_model, words

from anyorder.core.batch import dense_batch
from anyorder.core.objective import TrainingBatch
from anyorder.sampling import row_costs
from anyorder.training.objectives.next_token import NextToken

RNG = torch.Generator()


def logits_of(model: ToyModel, tokens: list[int]) -> torch.Tensor:
    """Causal logits of one document."""
    hidden = model.hidden(dense_batch(torch.tensor([tokens])))
    return model.logits(hidden)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_total_and_metric_agree_with_torch(smoothing: float, z_loss: float) -> None:
    model = toy_model()
    documents = [words(0, 5), words(1, 9)]
    found = NextToken(label_smoothing=smoothing, z_loss=z_loss).loss(model, pack(documents), RNG)
    total, plain = torch.zeros(()), torch.zeros(())
    for document in documents:
        logits, targets = logits_of(model, document)[:-1], torch.tensor(document[1:])
        total = total + F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        total = total + z_loss * logits.logsumexp(-1).square().sum()
        plain = plain + F.cross_entropy(logits, targets, reduction="sum")
    assert found.weight == 4 + 8
    torch.testing.assert_close(found.total, total)
    assert found.metrics["nats"] == pytest.approx(float(plain.detach()), rel=1e-6)


def test_a_packed_document_costs_what_it_costs_alone() -> None:
    model, documents = toy_model(), [words(0, 5), words(1, 9), words(2, 1)]
    packed = NextToken().loss(model, pack(documents, length=20), RNG)
    alone = [NextToken().loss(model, pack([document]), RNG) for document in documents]
    assert packed.weight == sum(found.weight for found in alone) == 12
    torch.testing.assert_close(packed.total, sum(found.total for found in alone))


def test_rows_of_one_document_take_the_fast_path_to_the_same_loss() -> None:
    model = toy_model()
    batch = pack([words(0, 5)], [words(1, 9)])
    seen = []
    hidden = model.network.hidden

    class Spy(ToyModel):
        def hidden(self, packed):  # type: ignore[no-untyped-def]
            seen.append(packed.groups[0].visible_RQK)
            return hidden(packed)

    spy = Spy(network=model.network, abilities=model.abilities)
    fast = NextToken().loss(spy, batch, RNG)
    # A third row of two documents, none of which counts, makes all rows take the other path.
    extra = pack([words(0, 5)], [words(1, 9)], [words(2, 4), words(3, 5)])
    extra.targets_BT[2] = False
    slow = NextToken().loss(spy, extra, RNG)
    assert seen[0] is None and seen[1] is not None
    assert fast.weight == slow.weight == 4 + 8
    torch.testing.assert_close(fast.total, slow.total)


def test_only_targets_count() -> None:
    model, tokens = toy_model(), words(0, 8)
    given = [(0, place) for place in (1, 2, 5)]
    found = NextToken().loss(model, pack([tokens], given=given), RNG)
    logprobs = logits_of(model, tokens).log_softmax(-1)
    expected = -sum(logprobs[place - 1, tokens[place]] for place in (3, 4, 6, 7))
    assert found.weight == 4
    torch.testing.assert_close(found.total, expected)


def test_a_batch_without_targets_costs_nothing() -> None:
    model = toy_model()
    found = NextToken().loss(model, pack([[5]], [[6]]), RNG)
    found.total.backward()
    assert found.total == 0 and found.weight == 0
    assert not any(parameter.grad.any() for parameter in model.network.parameters())  # type: ignore[union-attr]


def test_chunks_of_rows_change_neither_loss_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    batch: TrainingBatch = repeat(pack([words(0, 5), words(1, 9)]), 2)
    results = []
    for limit in (row_costs.KEPT_LOGITS, 7 * 61):
        monkeypatch.setattr(row_costs, "KEPT_LOGITS", limit)
        monkeypatch.setattr(row_costs, "CHUNK_LOGITS", {"cpu": limit})
        model, sizes = toy_model(), []

        class Spy(ToyModel):
            def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
                sizes.append(len(hidden_MW))  # noqa: B023
                return self.network.logits(hidden_MW)

        spy = Spy(network=model.network, abilities=model.abilities)
        found = NextToken(label_smoothing=0.1, z_loss=0.01).loss(spy, batch, RNG)
        assert sum(sizes) == found.weight == 24
        found.total.backward()
        again = 24 if limit == 7 * 61 else 0
        assert sum(sizes) == 24 + again, "the backward pass makes them again if they are too many"
        results.append((found.total, max(sizes), [p.grad for p in model.network.parameters()]))
    assert results[0][1] == 24 and results[1][1] == 7
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_plain_computation() -> None:
    model, tokens = toy_model(), words(0, 8)
    parameters = list(model.network.parameters())
    total = NextToken().loss(model, pack([tokens]), RNG).total
    found = torch.autograd.grad(total, parameters)
    plain = F.cross_entropy(
        logits_of(model, tokens)[:-1], torch.tensor(tokens[1:]), reduction="sum"
    )
    torch.testing.assert_close(found, torch.autograd.grad(plain, parameters))
