"""Insertion: what its three passes see, what they are asked, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.objectives.toys import ToyModel, each, equip, pack, repeat, toy_model, words

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.objective import TrainingBatch
from anyorder.training.objectives.insertion import Insertion


class Spy(ToyModel):
    """Remembers the decoder's passes, and how many rows its edit heads were asked about."""

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None = None) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append(batch)
        return super().hidden(batch, pool)

    def edits(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.__dict__.setdefault("asked", []).append(len(hidden_MW))
        return super().edits(hidden_MW, behind_MW)


def spy() -> Spy:
    model = equip(toy_model(tied_embeddings=False, head_bias=True), Insertion())
    return Spy(network=model.network, abilities=model.abilities)


def run(batch: TrainingBatch, seed: int = 0, model: Spy | None = None) -> tuple[Spy, torch.Tensor]:
    model = model or spy()
    found = Insertion().loss(model, batch, torch.Generator().manual_seed(seed))
    return model, found.total


def test_its_passes_see_what_is_left_then_masks_then_guesses() -> None:
    document = words(0, 12)
    batch = pack([words(1, 3), document], given=[(0, place) for place in range(5)], length=17)
    model, _ = run(batch, seed=3)
    left, masked, guessed = model.__dict__["seen"]
    mask = model.abilities.mask_token
    out = masked.tokens_N == mask
    num_out = int(out.sum())
    assert 2 < num_out < 9 and not out[:5].any() and not out[15:].any()
    assert masked.tokens_N[~out].tolist() == batch.tokens_BT[0, ~out].tolist()
    # What is out stands nowhere: the rest closes up, and sees itself alone.
    stays = ~out
    stays[15:] = False
    assert left.positions_N[stays].tolist() == [*range(3), *range(12 - num_out)]
    visible = left.groups[0].visible_RQK[0]
    sizes = (3, 12 - num_out)
    expected = torch.block_diag(*(torch.ones(size, size) for size in sizes)).bool()
    assert torch.equal(visible[stays][:, stays], expected)
    assert not visible[stays][:, ~stays].any()
    assert masked.positions_N[:15].tolist() == [*range(3), *range(12)]
    # Guesses are the likeliest tokens, the mask not among them.
    logits = model.logits(model.hidden(masked))[out]
    logits[:, mask] = -torch.inf
    assert guessed.tokens_N[out].tolist() == logits.argmax(-1).tolist()
    assert guessed.tokens_N[~out].tolist() == batch.tokens_BT[0, ~out].tolist()
    # Asked: behind what is given last and each free token that is left; each free token.
    assert model.__dict__["asked"] == [1 + 10 - num_out, 10]


def test_every_number_is_taken_out_as_often() -> None:
    batch = repeat(pack([words(0, 5)], given=[(0, 0)]), 500)
    with torch.no_grad():
        model, _ = run(batch)
    masked = model.__dict__["seen"][1].tokens_N.view(500, 5) == model.abilities.mask_token
    counts = masked.sum(1).bincount(minlength=5)
    # Chi-squared with 4 degrees of freedom exceeds 18.5 once in a thousand.
    assert len(counts) == 5 and ((counts - 100) ** 2 / 100).sum() < 18.5
    # With 8 (two such for each place): 26.1.
    assert ((masked.sum(0)[1:] - 250) ** 2 / 125).sum() < 26.1


def test_wrong_guesses_are_what_is_to_be_taken_out() -> None:
    """Every guess is 17, and the head is sure that all tokens belong."""
    model = spy()
    with torch.no_grad():
        model.network.head.bias[17] = 1e4
        for parameter in model.network.edit_head.parameters():
            parameter.zero_()
        model.network.edit_head.deletion.bias.fill_(-50.0)
    for token in (17, 18):
        batch = repeat(pack([[token] * 9], given=[(0, 0)]), 5)
        found = Insertion().loss(model, batch, torch.Generator().manual_seed(1))
        num_guessed = int((model.__dict__["seen"][-2].tokens_N == model.abilities.mask_token).sum())
        assert num_guessed > 9
        wrong = 0 if token == 17 else num_guessed
        assert found.metrics["deletion_nats"] == pytest.approx(50.0 * wrong, abs=1e-3)


def test_the_mask_token_is_never_predicted() -> None:
    model, totals = spy(), []
    for bias in (0.0, 50.0):
        with torch.no_grad():
            model.network.head.bias[model.abilities.mask_token] = bias
        totals.append(run(pack([words(0, 12)]), 1, model)[1])
    torch.testing.assert_close(*totals)


def test_a_batch_without_targets_costs_nothing() -> None:
    batch = pack([words(0, 4)], given=[(0, place) for place in range(4)])
    model = spy()
    found = Insertion().loss(model, batch, torch.Generator())
    found.total.backward()
    assert found.total == 0 and found.weight == 0


def test_rows_may_come_in_any_order() -> None:
    batch = pack([words(0, 7)], [words(1, 4), words(2, 3)])
    turned = each(batch, lambda tensor: tensor.flip(0))
    means = []
    with torch.no_grad():
        for found in (batch, turned):
            totals = torch.stack([run(found, seed)[1] for seed in range(25)])
            means.append((totals.mean(), totals.std() / 25**0.5))
    (first, error), (second, _) = means
    assert abs(first - second) < 5 * error


def test_refusals() -> None:
    abilities = equip(toy_model(), Insertion()).abilities
    Insertion().check(abilities)
    with pytest.raises(UserError, match=r"needs edit heads, and toy has none; give \[model\]"):
        Insertion().check(replace(abilities, num_insertions=0))
