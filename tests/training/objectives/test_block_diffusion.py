"""Block diffusion between its two ends: the chain rule, and masked diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.training.objectives.toys import ToyModel, mean_loss, pack, repeat, toy_model, words

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.training.objectives.block_diffusion import BlockDiffusion
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.next_token import NextToken


@dataclass(frozen=True, kw_only=True, eq=False)
class BagOfWords:
    """Predicts from the sum of all visible tokens' vectors, masks having none: so the same whether
    it is asked at the token before or at a mask."""

    table_VW: torch.Tensor
    head_WV: torch.Tensor

    abilities = Abilities(name="bag", vocabulary_size=7, context_length=64, mask_token=6)

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        group = batch.groups[0]
        tokens_BT = batch.tokens_N.view(group.num_requests, group.num_queries)
        visible = group.visible_RQK
        if visible is None:
            visible = torch.ones(1, group.num_queries, group.num_queries, dtype=torch.bool).tril()
        return torch.tanh(visible.double() @ self.table_VW[tokens_BT]).flatten(0, 1)

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        return (hidden_MW @ self.head_WV).masked_fill(torch.arange(7) == 6, -1e9).float()


def bag() -> BagOfWords:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    table[6] = 0.0
    head = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    return BagOfWords(table_VW=table, head_WV=head)


def test_blocks_of_one_token_are_the_chain_rule() -> None:
    # A document's first token is not the chain rule's business, so it is given.
    batch = pack([words(0, 6, 6), words(1, 5, 6)], given=[(0, 0), (0, 6)])
    exact = NextToken().loss(bag(), batch, torch.Generator())
    all_masked = BlockDiffusion(block_size=1, min_noise=1.0)
    found = all_masked.loss(bag(), batch, torch.Generator())
    assert found.weight == exact.weight == 9
    torch.testing.assert_close(found.total, exact.total)
    mean, error = mean_loss(BlockDiffusion(block_size=1), bag(), repeat(batch, 64), draws=20)
    assert error / 64 < 0.03 * float(exact.total)
    assert abs(mean / 64 - float(exact.total)) < 4 * error / 64


def test_one_block_of_everything_is_masked_diffusion() -> None:
    model = toy_model()
    batch = pack([words(0, 6), words(1, 5)], [words(2, 9)], given=[(0, 2), (1, 1)])
    for schedule in ("linear", "cosine", "square", "counts"):
        block = BlockDiffusion(block_size=9, schedule=schedule)  # type: ignore[arg-type]
        whole = MaskedDiffusion(schedule=schedule)  # type: ignore[arg-type]
        found, expected = (
            objective.loss(model, batch, torch.Generator().manual_seed(5))
            for objective in (block, whole)
        )
        assert found.weight == expected.weight
        assert expected.total > 0
        torch.testing.assert_close(found.total, expected.total)


class Spy(ToyModel):
    """Remembers what it was given."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        object.__setattr__(self, "batch", batch)
        return super().hidden(batch)


def test_who_sees_whom_and_where() -> None:
    model = toy_model()
    spy = Spy(network=model.network, abilities=model.abilities)
    batch = pack([words(0, 3), words(1, 2)])
    BlockDiffusion(block_size=2).loss(spy, batch, torch.Generator())
    seen: PackedBatch = spy.batch  # type: ignore[attr-defined]
    assert seen.positions_N.tolist() == [0, 1, 2, 0, 1] * 2
    assert torch.equal(seen.tokens_N[5:], batch.tokens_BT[0])
    drawn = """
        11... .....
        11... .....
        ..1.. 11...
        ...11 .....
        ...11 .....

        ..... 11...
        ..... 11...
        ..... 111..
        ..... ...11
        ..... ...11
    """
    rows = [line.replace(" ", "") for line in drawn.split("\n") if line.strip()]
    expected = torch.tensor([[symbol == "1" for symbol in row] for row in rows])
    visible = seen.groups[0].visible_RQK
    assert visible is not None and torch.equal(visible[0], expected)


def test_every_block_draws_its_own_share_of_masks() -> None:
    model = toy_model()
    spy = Spy(network=model.network, abilities=model.abilities)
    batch = pack([[5] * 200])
    objective = BlockDiffusion(block_size=50, min_noise=0.2, max_noise=0.9)
    shares = []
    for seed in range(10):
        objective.loss(spy, batch, torch.Generator().manual_seed(seed))
        masked = spy.batch.tokens_N[:200] == model.abilities.mask_token  # type: ignore[attr-defined]
        shares.append(masked.view(4, 50).double().mean(1))
    found = torch.stack(shares)
    # Four blocks spread their levels over the interval: 0.7 / 4 apart, give or take the draws.
    assert (found.max(1).values - found.min(1).values > 0.25).all()
    assert 0.05 < found.min() < 0.45 and 0.65 < found.max() < 1.0
    assert float(found.mean()) == pytest.approx(0.55, abs=0.05)


def test_noise_that_masks_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"noise from 0.9 to 0.5 masks nothing; choose max_noise"):
        BlockDiffusion(min_noise=0.9, max_noise=0.5)
    with pytest.raises(UserError, match=r"noise from 0 to 0 masks nothing"):
        BlockDiffusion(min_noise=0.0, max_noise=0.0)
