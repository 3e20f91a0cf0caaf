"""EAGLE-3: a drafter of one layer learns to go on from a frozen target, and from its own outputs.

Li et al., arXiv 2503.01840. Row i reads token i + 1 and the target's hidden states of token i after
some of its layers, and predicts token i + 2. The "training-time test" repeats what drafting does:
in step s it reads its own output of step s - 1 for token i instead, and sees what drafting sees,
the first step's rows up to i - s + 1 and then one row of each later step. Steps further from the
target count for less, as in the authors' code.

What is predicted is the target's own distribution, over the tokens that the drafter scores, or the
text's token; rows before a token of the text that the drafter does not score are left out. The best
text is the target's own (`anyorder data synthesize`).

Keys and values of earlier steps are kept, with their gradients, where at inference the cache is.

Shape suffixes: B sequences, T tokens each, K = tokens of all steps so far, M rows with a target,
F features of the target side by side, W width, S scored tokens, G key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
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
from anyorder.sampling.row_costs import draft_columns, draft_costs


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
        their weights. The metric is how often the first step's guess is the text's token."""
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
        condition_BTX = _rows(torch.cat(taps, dim=-1), tokens_BT)
        reads_BT = tokens_BT.roll(-1, dims=1)
        wanted_BT = draft_columns(model, tokens_BT).roll(-2, dims=1)
        known_BT = _known(batch) & (wanted_BT >= 0)
        total: torch.Tensor | float = 0.0
        right, kept = 0.0, _Kept(len(tokens_BT))
        for step in range(self.steps):
            packed = _step(step, reads_BT, documents_BT, positions_BT, condition_BTX)
            hidden_BTW = _rows(model.hidden(packed, kept), tokens_BT)
            condition_BTX = _rows(_tap(packed, 1), tokens_BT).roll(1, dims=1)
            # Before so many tokens, there is no row of the first step to go on from.
            rows_BT = known_BT & (positions_BT >= step)
            columns = [wanted_BT[rows_BT]]
            if self.targets == "distribution":
                columns.append(theirs_BTW[rows_BT])
            costs_M2 = draft_costs(model, hidden_BTW[rows_BT], _cost(model, target), *columns)
            total = total + self.decay**step * costs_M2[:, 0].sum()
            if step == 0:
                right = float(costs_M2[:, 1].detach().sum())
        assert isinstance(total, torch.Tensor), "there is at least one step"
        return Loss(total=total, weight=float(known_BT.sum()), metrics={"right": right})


def _cost(model: TrainableModel, target: TrainableModel) -> Callable[..., torch.Tensor]:
    """[M, 2]: what to train with, and whether the guess is the text's token."""

    def cost(
        logits_MS: torch.Tensor, wanted_M: torch.Tensor, theirs_MW: torch.Tensor | None = None
    ) -> torch.Tensor:
        if theirs_MW is None:
            cost_M = F.cross_entropy(logits_MS, wanted_M, reduction="none")
        else:
            with torch.no_grad():
                teacher_MS = target.logits_of(theirs_MW, model.scored)
            cost_M = divergence(logits_MS, teacher_MS)
        right_M = logits_MS.argmax(dim=-1) == wanted_M
        return torch.stack((cost_M, right_M.to(cost_M)), dim=1)

    return cost


class _Kept:
    """Keys and values of all steps, with gradients: what `core.batch.KeyValuePool` is to a network
    of one layer."""

    def __init__(self, num_sequences: int) -> None:
        self._num_sequences = num_sequences
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def write(
        self, layer: int, slots_N: torch.Tensor, keys_NGD: torch.Tensor, values_NGD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A step's, behind those of the steps before."""
        shape = (self._num_sequences, -1, *keys_NGD.shape[1:])
        self._keys.append(keys_NGD.reshape(shape))
        self._values.append(values_NGD.reshape(shape))
        return keys_NGD, values_NGD

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, K, G, D] of all steps."""
        return self.pages(layer)

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, a page a sequence; kernels ask for it in validation."""
        return torch.cat(self._keys, dim=1), torch.cat(self._values, dim=1)

    def scales(self, layer: int) -> None:
        """They are kept as they are."""


def _known(batch: TrainingBatch) -> torch.Tensor:
    """bool [B, T]; is the token after the next a target of the same document?"""
    documents_BT = batch.documents_BT
    known_BT = batch.targets_BT.roll(-2, dims=1) & (documents_BT == documents_BT.roll(-2, dims=1))
    known_BT[:, -2:] = False  # what came round from the row's start
    return known_BT


def _step(
    step: int,
    reads_BT: torch.Tensor,
    documents_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    condition_BTX: torch.Tensor,
) -> PackedBatch:
    """One step's rows, which see what is kept of the steps before and themselves."""
    num_sequences, length = reads_BT.shape
    all_TT = torch.ones(length, length, dtype=torch.bool, device=reads_BT.device)
    # A row reads the first step's rows up to `step` places before it, and of the second and later
    # steps up to its own those that its own chain of guesses went through.
    chain = [all_TT.tril(other - step).triu(other - step) for other in range(1, step + 1)]
    visible_TK = torch.cat((all_TT.tril(-step), *chain), dim=1)
    together_BTK = same_document(documents_BT).repeat(1, 1, step + 1)
    batch = dense_batch(reads_BT, visible_TK & together_BTK, positions_BT)
    group = replace(
        batch.groups[0],
        pages_RP=torch.arange(num_sequences, device=reads_BT.device)[:, None],
        key_positions_RK=positions_BT.repeat(1, step + 1),
    )
    batch.taps[1] = None
    conditioning = tuple((row * length, rows) for row, rows in enumerate(condition_BTX))
    slots_N = torch.arange(reads_BT.numel(), device=reads_BT.device)
    return replace(batch, groups=(group,), slots_N=slots_N, conditioning=conditioning)


def _rows(values_NW: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    return values_NW.view(*tokens_BT.shape, values_NW.shape[-1])


def _tap(batch: PackedBatch, layer: int) -> torch.Tensor:
    filled = batch.taps[layer]
    assert filled is not None, "the network fills what it is asked for"
    return filled
