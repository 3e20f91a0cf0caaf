"""DFlash: a drafter learns to fill in a whole block after a text that its target has read.

Chen et al., arXiv 2602.06036. Anchors are drawn among the text's tokens; from each, a block of that
token and masks is filled in by one bidirectional pass over the target's hidden states of all tokens
before it. All blocks of a sequence run beside its context at once and do not see each other. The
first masks count for most: place k of a block weighs exp(-(k - 1) / `decay`), since a wrong guess
makes those after it worthless (7 is the paper's for blocks of 16).

What is predicted is the text's token or the target's own distribution, given the text up to it. The
best text is the target's own (`anyorder data synthesize`).

Shape suffixes: B sequences, T tokens each, A anchors of a sequence, S tokens of a block, G = A * S,
D = T + G, M rows with a target, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F

from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within, document_positions
from anyorder.sampling.divergences import divergence
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class BlockDrafter(Objective):
    """Fill in blocks of masks after random places of the text, in one pass each."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    anchors: Annotated[int, Range(1), "blocks drawn from each training sequence"] = 16
    targets: Annotated[
        Literal["tokens", "distribution"], "the text's tokens, or all that the target predicts"
    ] = "tokens"
    decay: Annotated[
        float, Range(0.1, 1e6), "places in which the weight of a guess falls to 1 / e"
    ] = 7.0

    def check(self, abilities: Abilities) -> None:
        super().check(abilities)
        if abilities.kind != "dflash":
            raise UserError(
                f"block_drafter trains DFlash drafters; {abilities.name} is none: give [model] "
                'kind = "dflash".'
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over blocks, each a weighted mean over its places; the weights of what lies behind
        the text's end are lost. The metric is how often a block's first guess is right."""
        target, mask_token = model.teacher, model.abilities.mask_token
        assert target is not None, "a recipe without a teacher is refused"
        assert mask_token is not None, "check() refuses models without a mask token"
        tokens_BT, documents_BT = batch.tokens_BT, batch.documents_BT
        size, features = model.abilities.block_size, model.abilities.features
        packed = dense_batch(
            tokens_BT, causal_within(documents_BT), document_positions(documents_BT)
        )
        packed.taps.update(dict.fromkeys(features))
        with torch.no_grad():
            theirs_BTW = target.hidden(packed).view(*tokens_BT.shape, -1)
        taps = [tap for layer in features if (tap := packed.taps[layer]) is not None]
        read_BTF = torch.cat(taps, dim=-1).view(*tokens_BT.shape, -1)
        anchors_BA = _anchors(batch, self.anchors, rng)
        blocks = _blocks(batch, anchors_BA, size, mask_token, read_BTF)
        hidden_BDW = model.hidden(blocks).view(len(tokens_BT), -1, theirs_BTW.shape[-1])
        block_BGW = hidden_BDW[:, tokens_BT.shape[1] :]
        hidden_BASW = block_BGW.reshape(*anchors_BA.shape, size, -1)
        places_BAS, known_BAS = _guessed(batch, anchors_BA, size)
        weights_S = torch.arange(size - 1, device=tokens_BT.device).div(-self.decay).exp()
        weights_BAS = (weights_S / weights_S.sum()).expand(*known_BAS.shape)
        sequences_B11 = torch.arange(len(tokens_BT), device=tokens_BT.device)[:, None, None]
        columns = [tokens_BT[sequences_B11, places_BAS][known_BAS]]
        if self.targets == "distribution":
            # The target predicts a token from the row before it.
            columns.append(theirs_BTW[sequences_B11, places_BAS - 1][known_BAS])
        costs_M2 = row_costs(model, hidden_BASW[:, :, 1:][known_BAS], _cost(target), *columns)
        total = (costs_M2[:, 0] * weights_BAS[known_BAS]).sum()
        first_M = (places_BAS == anchors_BA[:, :, None] + 1)[known_BAS]
        return Loss(
            total=total,
            weight=float((anchors_BA >= 0).sum()),
            metrics={"right": float(costs_M2[first_M, 1].detach().sum())},
        )


def _cost(target: TrainableModel) -> Callable[..., torch.Tensor]:
    """[M, 2]: what to train with, and whether the guess is the text's token."""

    def cost(
        logits_MV: torch.Tensor, wanted_M: torch.Tensor, theirs_MW: torch.Tensor | None = None
    ) -> torch.Tensor:
        if theirs_MW is None:
            cost_M = F.cross_entropy(logits_MV, wanted_M, reduction="none")
        else:
            with torch.no_grad():
                teacher_MV = target.logits(theirs_MW)
            cost_M = divergence(logits_MV, teacher_MV)
        right_M = logits_MV.argmax(dim=-1) == wanted_M
        return torch.stack((cost_M, right_M.to(cost_M)), dim=1)

    return cost


def _anchors(batch: TrainingBatch, count: int, rng: torch.Generator) -> torch.Tensor:
    """int64 [B, A]; places drawn among those before a target, and -1 where a row has too few."""
    documents_BT = batch.documents_BT
    good_BT = batch.targets_BT.roll(-1, dims=1) & (documents_BT == documents_BT.roll(-1, dims=1))
    good_BT[:, -1] = False  # what came round from the row's start
    draws_BT = torch.rand(good_BT.shape, generator=rng).to(good_BT.device)
    found = torch.where(good_BT, draws_BT, -1.0).topk(min(count, good_BT.shape[1]), dim=1)
    return torch.where(found.values >= 0, found.indices, -1)


def _guessed(
    batch: TrainingBatch, anchors_BA: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, A, S - 1]: the places of the tokens behind each anchor, and whether each is a target of
    the anchor's document."""
    length = batch.tokens_BT.shape[1]
    distances_S = torch.arange(1, size, device=anchors_BA.device)
    places_BAS = anchors_BA[:, :, None] + distances_S
    inside_BAS = (anchors_BA[:, :, None] >= 0) & (places_BAS < length)
    places_BAS = places_BAS.clamp(1, length - 1)
    sequences_B11 = torch.arange(len(anchors_BA), device=anchors_BA.device)[:, None, None]
    documents_BAS = batch.documents_BT[sequences_B11, places_BAS]
    own_BA1 = batch.documents_BT.gather(1, anchors_BA.clamp(min=0))[:, :, None]
    known_BAS = inside_BAS & (documents_BAS == own_BA1)
    return places_BAS, known_BAS & batch.targets_BT[sequences_B11, places_BAS]


def _blocks(
    batch: TrainingBatch,
    anchors_BA: torch.Tensor,
    size: int,
    mask_token: int,
    features_BTF: torch.Tensor,
) -> PackedBatch:
    """[context ; blocks] of every sequence."""
    tokens_BT, documents_BT = batch.tokens_BT, batch.documents_BT
    (num_sequences, length), num_anchors = tokens_BT.shape, anchors_BA.shape[1]
    places_BA = anchors_BA.clamp(min=0)
    block_BAS = torch.full((num_sequences, num_anchors, size), mask_token, device=tokens_BT.device)
    block_BAS[:, :, 0] = tokens_BT.gather(1, places_BA)
    positions_BT = document_positions(documents_BT)
    within_S = torch.arange(size, device=tokens_BT.device)
    block_positions_BAS = positions_BT.gather(1, places_BA)[:, :, None] + within_S
    # A block sees the context before its anchor, and itself.
    before_BAT = torch.arange(length, device=tokens_BT.device) < places_BA[:, :, None]
    own_BA1 = documents_BT.gather(1, places_BA)[:, :, None]
    context_BGT = (before_BAT & (own_BA1 == documents_BT[:, None, :])).repeat_interleave(size, 1)
    number_G = torch.arange(num_anchors * size, device=tokens_BT.device) // size
    own_BGG = (number_G[:, None] == number_G).expand(num_sequences, -1, -1)
    # Context rows are keys and values alone; each sees itself, so that it sees something.
    alone_TT = torch.eye(length, dtype=torch.bool, device=tokens_BT.device)
    top_TD = torch.cat((alone_TT, alone_TT.new_zeros(length, num_anchors * size)), dim=1)
    bottom_BGD = torch.cat((context_BGT, own_BGG), dim=2)
    packed = dense_batch(
        torch.cat((tokens_BT, block_BAS.flatten(1)), dim=1),
        torch.cat((top_TD.expand(num_sequences, -1, -1), bottom_BGD), dim=1),
        torch.cat((positions_BT, block_positions_BAS.flatten(1)), dim=1),
    )
    num_rows = length + num_anchors * size
    conditioning = tuple((row * num_rows, rows) for row, rows in enumerate(features_BTF))
    return replace(packed, conditioning=conditioning)
