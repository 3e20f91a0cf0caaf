"""EAGLE-3: a drafter of one layer learns to go on from a frozen target, and from its own outputs.

Li et al., arXiv 2503.01840. Row i reads token i + 1 and the target's hidden states of token i after
some of its layers, and predicts token i + 2. The "training-time test" repeats what drafting does:
in step s it reads its own output of step s - 1 for token i instead, and sees what drafting sees,
the first step's rows up to i - s + 1 and then one row of each later step. Steps further from the
target count for less, as in the authors' code.

What is predicted is the target's own distribution, over the tokens that the drafter scores, or the
text's token; rows whose token the drafter does not score are left out. The best text is the
target's own (`anyorder data synthesize`).

Earlier steps run again beside each later one, since attention has no cache with gradients: n steps
cost as much as n (n + 1) / 2. Next to the target's pass that is little for the usual 3.

Shape suffixes: B sequences, T tokens each, D = tokens of all steps so far, M rows with a target,
F features of the target side by side, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F

from anyorder.core.batch import PackedBatch, dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import causal_within, document_positions, same_document
from anyorder.sampling.divergences import divergence
from anyorder.sampling.row_costs import row_costs


@dataclass(frozen=True, kw_only=True)
class Eagle(Objective):
    """A layer on a frozen target's hidden states guesses what follows, several tokens deep."""

    needs_teacher: ClassVar[bool] = True

    steps: Annotated[int, Range(1, 16), "tokens guessed in a row, each from the guess before"] = 3
    targets: Annotated[
        Literal["distribution", "tokens"], "all that the target predicts, or the text's tokens"
    ] = "distribution"
    decay: Annotated[float, Range(0.01, 1.0), "weight of a step, over that of the one before"] = 0.8

    def check(self, abilities: Abilities) -> None:
        super().check(abilities)
        if abilities.kind != "eagle":
            raise UserError(
                f"eagle trains EAGLE-3 drafters; {abilities.name} is none: give [model] kind = "
                '"eagle".'
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over rows that the first step has a target for; of each row all steps' costs, by
        their weights. The metric is how often the first step's guess is the target's likeliest
        token, or the text's."""
        target = model.teacher
        assert target is not None, "a recipe without a teacher is refused"
        tokens_BT, documents_BT = batch.tokens_BT, batch.documents_BT
        positions_BT = document_positions(documents_BT)
        packed = dense_batch(tokens_BT, causal_within(documents_BT), positions_BT)
        packed.taps.update(dict.fromkeys(model.abilities.features))
        with torch.no_grad():
            # The row before a token predicts it.
            theirs_BTW = _rows(target.hidden(packed), tokens_BT).roll(-1, dims=1)
        taps = [_tap(packed, layer) for layer in model.abilities.features]
        conditions = [_rows(torch.cat(taps, dim=-1), tokens_BT)]
        reads_BT, wanted_BT = tokens_BT.roll(-1, dims=1), tokens_BT.roll(-2, dims=1)
        known_BT = _known(batch)
        total: torch.Tensor | float = 0.0
        weight = right = 0.0
        for step in range(self.steps):
            so_far = _steps(reads_BT, documents_BT, positions_BT, conditions)
            hidden_BTW = _rows(model.hidden(so_far), tokens_BT)
            conditions.append(_rows(_tap(so_far, 1), tokens_BT).roll(1, dims=1))
            # Before so many tokens, there is no row of the first step to go on from.
            rows_BT = known_BT & (positions_BT >= step)
            columns = [wanted_BT[rows_BT]]
            if self.targets == "distribution":
                columns.append(theirs_BTW[rows_BT])
            costs_M3 = row_costs(model, hidden_BTW[rows_BT], _cost(target), *columns)
            total = total + self.decay**step * costs_M3[:, 0].sum()
            if step == 0:
                weight, right = costs_M3[:, 1:].detach().sum(0).tolist()
        assert isinstance(total, torch.Tensor), "there is at least one step"
        return Loss(total=total, weight=weight, metrics={"right": right})


def _cost(target: TrainableModel) -> Callable[..., torch.Tensor]:
    """[M, 3]: what to train with, whether the drafter scores the token at all, and whether its
    guess is right; the token is the likeliest of the target where its hidden states are given."""

    def cost(
        logits_MV: torch.Tensor, wanted_M: torch.Tensor, theirs_MW: torch.Tensor | None = None
    ) -> torch.Tensor:
        if theirs_MW is None:
            cost_M = F.cross_entropy(logits_MV, wanted_M, reduction="none")
        else:
            with torch.no_grad():
                teacher_MV = target.logits(theirs_MW)
            wanted_M = teacher_MV.argmax(dim=-1)
            cost_M = divergence(logits_MV, teacher_MV)
        scored_M = logits_MV.gather(1, wanted_M[:, None])[:, 0] > -torch.inf
        right_M = logits_MV.argmax(dim=-1) == wanted_M
        cost_M = torch.where(scored_M, cost_M, 0.0)
        return torch.stack((cost_M, scored_M.to(cost_M), right_M.to(cost_M)), dim=1)

    return cost


def _known(batch: TrainingBatch) -> torch.Tensor:
    """bool [B, T]; is the token after the next a target of the same document?"""
    documents_BT = batch.documents_BT
    known_BT = batch.targets_BT.roll(-2, dims=1) & (documents_BT == documents_BT.roll(-2, dims=1))
    known_BT[:, -2:] = False  # what came round from the row's start
    return known_BT


def _steps(
    reads_BT: torch.Tensor,
    documents_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    conditions: Sequence[torch.Tensor],
) -> PackedBatch:
    """All steps that there are conditions for, one behind the other in every sequence."""
    num_steps, (num_sequences, length) = len(conditions), reads_BT.shape
    together_BTT = same_document(documents_BT)
    all_TT = torch.ones(length, length, dtype=torch.bool, device=reads_BT.device)

    def sees(step: int, other: int) -> torch.Tensor:
        """A row reads the first step's rows up to `step` places before it, and of the second and
        later steps up to its own those that its own chain of guesses went through."""
        if other == 0:
            return all_TT.tril(-step)
        return all_TT.tril(other - step).triu(other - step) if other <= step else ~all_TT

    tables = [[sees(step, other) for other in range(num_steps)] for step in range(num_steps)]
    visible_DD = torch.cat([torch.cat(row, dim=1) for row in tables])
    batch = dense_batch(
        reads_BT.repeat(1, num_steps),
        visible_DD & together_BTT.repeat(1, num_steps, num_steps),
        positions_BT.repeat(1, num_steps),
    )
    batch.taps[1] = None
    conditioning = tuple(
        ((row * num_steps + step) * length, conditions[step][row])
        for row in range(num_sequences)
        for step in range(num_steps)
    )
    return replace(batch, conditioning=conditioning)


def _rows(values_NW: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, W]: what belongs to the last step's rows."""
    num_sequences, length = tokens_BT.shape
    return values_NW.view(num_sequences, -1, values_NW.shape[-1])[:, -length:]


def _tap(batch: PackedBatch, layer: int) -> torch.Tensor:
    filled = batch.taps[layer]
    assert filled is not None, "the network fills what it is asked for"
    return filled
