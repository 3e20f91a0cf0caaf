"""Mask-predict: what is masked how often, what glancing shows, what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.training.objectives.toys import ToyModel, each, equip, pack, toy_model, words

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.objective import Objective
from anyorder.training.objectives.mask_predict import MaskPredict


class Spy(ToyModel):
    """Remembers the decoder's passes."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append(batch)
        return super().hidden(batch)


def spy(objective: Objective) -> Spy:
    model = equip(toy_model(), objective)
    return Spy(network=model.network, abilities=model.abilities)


def test_every_number_of_masks_is_as_likely_and_none_is_never() -> None:
    objective = MaskPredict()
    model = spy(objective)
    batch = pack([[5] * 5, [6] * 4], given=[(0, 0), (0, 5)])
    mask = model.abilities.mask_token
    counts: list[Counter[int]] = [Counter(), Counter()]
    with torch.no_grad():
        for seed in range(600):
            objective.loss(model, batch, torch.Generator().manual_seed(seed))
            masked = model.__dict__["seen"].pop().tokens_N == mask
            assert not masked[0] and not masked[5]
            counts[0][int(masked[:5].sum())] += 1
            counts[1][int(masked[5:].sum())] += 1
    assert sorted(counts[0]) == [1, 2, 3, 4] and sorted(counts[1]) == [1, 2, 3]
    # Chi-squared with 3 degrees of freedom exceeds 16.3 once in a thousand, with 2 13.8.
    assert sum((n - 150) ** 2 / 150 for n in counts[0].values()) < 16.3
    assert sum((n - 200) ** 2 / 200 for n in counts[1].values()) < 13.8


def test_decoders_see_their_document_and_its_source() -> None:
    objective = MaskPredict(masking="all")
    model = spy(objective)
    objective.loss(model, pack([words(0, 3), words(1, 2)], length=6), torch.Generator())
    (seen,) = model.__dict__["seen"]
    group = seen.groups[0]
    assert seen.positions_N.tolist() == [0, 1, 2, 0, 1, 0]
    assert torch.equal(
        group.visible_RQK[0, :5, :5],
        torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool(),
    )
    # Sources of three and of two tokens.
    expected = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool()
    assert torch.equal(group.memory.visible_RQS[0, :5], expected)


@pytest.mark.parametrize(("progress", "ratio"), [(0.0, 1.0), (0.5, 0.6), (1.0, 0.2)])
def test_glancing_shows_a_share_of_the_mistakes_that_changes_over_the_run(
    progress: float, ratio: float
) -> None:
    objective = MaskPredict(masking="glancing", first_ratio=1.0, last_ratio=0.2)
    model = spy(objective)
    batch = replace(pack([[0, *words(0, 20)]], given=[(0, 0)]), progress=progress)
    mask = model.abilities.mask_token
    found = objective.loss(model, batch, torch.Generator().manual_seed(0))
    first, second = model.__dict__["seen"]
    assert (first.tokens_N[1:] == mask).all()
    logits = model.logits(model.hidden(first))[1:]
    logits[:, mask] = -torch.inf
    wrong = int((logits.argmax(-1) != batch.tokens_BT[0, 1:]).sum())
    assert wrong > 10
    assert int((second.tokens_N[1:] != mask).sum()) == round(ratio * wrong)
    assert torch.equal(
        second.tokens_N[second.tokens_N != mask], batch.tokens_BT[0][second.tokens_N != mask]
    )
    assert found.weight == 20


def test_nothing_wrong_shows_nothing() -> None:
    objective = MaskPredict(masking="glancing", first_ratio=1.0, length_weight=0.0)
    model = equip(toy_model(tied_embeddings=False, head_bias=True), objective)
    with torch.no_grad():
        model.network.head.bias[17] = 1e4
    sure = Spy(network=model.network, abilities=model.abilities)
    found = objective.loss(sure, pack([[17] * 9]), torch.Generator())
    assert (sure.__dict__["seen"][1].tokens_N == model.abilities.mask_token).all()
    assert abs(float(found.total.detach())) < 1e-3


def test_the_mask_token_is_never_predicted() -> None:
    objective = MaskPredict(masking="all", length_weight=0.0, label_smoothing=0.1)
    model = equip(toy_model(tied_embeddings=False, head_bias=True), objective)
    totals = []
    for bias in (0.0, 50.0):
        with torch.no_grad():
            model.network.head.bias[model.abilities.mask_token] = bias
        totals.append(objective.loss(model, pack([words(0, 12)]), torch.Generator()).total)
    torch.testing.assert_close(*totals)


def test_lengths_are_learnt_from_the_source_alone() -> None:
    """With the decoder's part of the loss taken away, nothing but the encoder learns."""
    objective = MaskPredict(masking="all", length_weight=1.0)
    model = equip(toy_model(), objective)
    batch = pack([words(0, 7), words(1, 4)], given=[(0, 0), (0, 7)])
    found = objective.loss(model, batch, torch.Generator())
    plain = replace(objective, length_weight=0.0).loss(model, batch, torch.Generator())
    (found.total - plain.total).backward()
    own = [p for name, p in model.network.named_parameters() if name.startswith("layers")]
    assert not any(parameter.grad.abs().max() > 1e-9 for parameter in own)  # type: ignore[union-attr]
    head = model.network.length_head  # type: ignore[attr-defined]
    assert head.bias.grad[6] < 0 and head.bias.grad[3] < 0
    assert (head.bias.grad > 0).sum() == 30


def test_a_batch_without_targets_costs_nothing() -> None:
    batch = pack([words(0, 4)], given=[(0, place) for place in range(4)])
    for masking in ("uniform", "all", "glancing"):
        objective = MaskPredict(masking=masking)  # type: ignore[arg-type]
        found = objective.loss(equip(toy_model(), objective), batch, torch.Generator())
        found.total.backward()
        assert found.total == 0 and found.weight == 0


def test_refusals() -> None:
    with pytest.raises(InvalidRequest, match=r"average over masking = 'uniform', got 'all'"):
        MaskPredict(weighting="likelihood", masking="all")
    abilities = equip(toy_model(), MaskPredict()).abilities
    with pytest.raises(UserError, match="toy has no length head"):
        MaskPredict().check(replace(abilities, num_lengths=0))
    MaskPredict(length_weight=0.0).check(replace(abilities, num_lengths=0))


def test_rows_may_come_in_any_order() -> None:
    objective = MaskPredict(masking="all")
    model = equip(toy_model(), objective)
    batch = pack([words(0, 7)], [words(1, 4), words(2, 3)])
    turned = each(batch, lambda tensor: tensor.flip(0))
    totals = [objective.loss(model, b, torch.Generator()).total for b in (batch, turned)]
    torch.testing.assert_close(*totals)
