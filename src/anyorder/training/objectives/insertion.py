"""Insertion and deletion: say what a translation lacks, fill it in, take out what is wrong.

The Levenshtein Transformer (Gu et al., arXiv 1905.11006), by imitation of what is certainly right.
Of a text's N tokens, a number drawn evenly from 0 to N is taken out. A pass over what is left says
how many are missing behind each token; a pass with as many masks in their places predicts them. Put
into the text, its likeliest guesses are what a last pass judges: it learns to take out those tokens
that are not part of a longest common subsequence with the translation, so as few as can be.

The loss is the negative log-probability of all that: numbers, tokens, and what to take out. A
text's first token is never taken out; where nothing is given (where the text begins, a prompt), no
token stands before it that could say how many are missing. The text's end is a token like others.

Not here: texts that the deletions themselves leave behind, as beginnings for insertions; a random
choice among the paper's beginnings for deletions; drawing guesses instead of taking the likeliest.

Shape suffixes: B rows, T tokens each, U documents (and padding), M masked tokens, N all tokens, W
width, V vocabulary, C counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_starts, same_document
from anyorder.core.pairs import encode_sources, reads
from anyorder.sampling.row_costs import row_costs
from anyorder.sampling.smoothing import smoothed_nats
from anyorder.sampling.subsequence import common_subsequence
from anyorder.sampling.subsets import count, random_subsets, units


@dataclass(frozen=True, kw_only=True)
class Insertion(Objective):
    """Say what a translation lacks, fill it in, and take out what is wrong."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    label_smoothing: Annotated[
        float, Range(0.0, 0.9), "share of a token's target spread over the whole vocabulary"
    ] = 0.0

    def check(self, abilities: Abilities) -> None:
        """It needs heads that edit."""
        super().check(abilities)
        if not abilities.num_insertions:
            raise UserError(
                f"insertion needs edit heads, and {abilities.name} has none; give [model] "
                "edits = true."
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Nats over the tokens that may be taken out."""
        mask_token = model.abilities.mask_token
        assert mask_token is not None, "check() refuses models without a mask token"
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        memory = _Memory(*encode_sources(model, batch))
        free_BT = batch.targets_BT & ~document_starts(documents_BT)
        units_BT = units(documents_BT)
        counts_U = count(free_BT, units_BT)
        draws_U = torch.rand(len(counts_U), generator=rng, dtype=torch.float64)
        sizes_U = (draws_U.to(counts_U.device) * (counts_U + 1)).long()
        out_BT = random_subsets(free_BT, units_BT, sizes_U, rng)

        hidden_BTW = _hidden(model, tokens_BT, documents_BT, memory, out_BT)
        numbers = _missing_nats(model, hidden_BTW, units_BT, free_BT, out_BT)

        nothing_BT = torch.zeros_like(out_BT)
        masked_BT = tokens_BT.masked_fill(out_BT, mask_token)
        hidden_MW = _hidden(model, masked_BT, documents_BT, memory, nothing_BT)[out_BT]

        def cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
            nats_M2 = smoothed_nats(
                logits_MV, targets_M, smoothing=self.label_smoothing, banned=mask_token
            )
            hole_V = torch.arange(logits_MV.shape[1], device=logits_MV.device) == mask_token
            guesses_M = logits_MV.detach().masked_fill(hole_V, -torch.inf).argmax(dim=1)
            return torch.cat((nats_M2, guesses_M[:, None]), dim=1)  # any id is exact in float32

        found_M3 = row_costs(model, hidden_MW, cost, tokens_BT[out_BT])
        filling, nats = found_M3[:, :2].sum(0).unbind()

        guessed_BT = tokens_BT.masked_scatter(out_BT, found_M3[:, 2].detach().long())
        stays_BT = common_subsequence(guessed_BT, tokens_BT, _stretches(free_BT))
        wrong_BT = free_BT & ~stays_BT
        hidden_NW = _hidden(model, guessed_BT, documents_BT, memory, nothing_BT)[free_BT]
        deletions = F.binary_cross_entropy_with_logits(
            model.edits(hidden_NW, torch.zeros_like(hidden_NW))[1],
            wrong_BT[free_BT].float(),
            reduction="sum",
        )
        metrics = {"nats": nats, "insertion_nats": numbers, "deletion_nats": deletions}
        return Loss(
            total=numbers + filling + deletions,
            weight=float(counts_U.sum()),
            metrics={name: float(value.detach()) for name, value in metrics.items()},
        )


@dataclass(frozen=True, eq=False)
class _Memory:
    """What the encoder made of the sources."""

    states_BSW: torch.Tensor
    documents_BS: torch.Tensor

    def of(self, documents_BT: torch.Tensor) -> CrossMemory:
        """What these documents read."""
        return reads(self.states_BSW, self.documents_BS, documents_BT)


def _hidden(
    model: TrainableModel,
    tokens_BT: torch.Tensor,
    documents_BT: torch.Tensor,
    memory: _Memory,
    out_BT: torch.Tensor,
) -> torch.Tensor:
    """[B, T, W] of texts without the tokens that are out: the others stand side by side and see
    each other alone."""
    # What is out keeps its place in the row, but belongs to nobody and counts for nobody.
    left_BT = documents_BT.masked_fill(out_BT, -1)
    ranks_BT = (~out_BT).long().cumsum(dim=1) - 1
    firsts_BT = torch.where(document_starts(documents_BT), ranks_BT, 0).cummax(dim=1).values
    packed = dense_batch(
        tokens_BT, same_document(left_BT), ranks_BT - firsts_BT, memory=memory.of(left_BT)
    )
    return model.hidden(packed).view(*tokens_BT.shape, -1)


def _missing_nats(
    model: TrainableModel,
    hidden_BTW: torch.Tensor,
    units_BT: torch.Tensor,
    free_BT: torch.Tensor,
    out_BT: torch.Tensor,
) -> torch.Tensor:
    """-log p of how many tokens are out behind each that is left, and behind the last that is given
    before some that may be."""
    ranks_BT = (~out_BT).long().cumsum(dim=1) - 1  # what is out is counted where it is missing
    missing_BT = torch.zeros_like(ranks_BT).scatter_add_(1, ranks_BT, out_BT.long())
    next_BT = F.pad(free_BT[:, 1:], (0, 1))  # a document's first token is never free
    left_BT = ~out_BT
    numbers_N = missing_BT.gather(1, ranks_BT)[left_BT]
    hidden_NW, units_N = hidden_BTW[left_BT], units_BT[left_BT]
    ends_N = F.pad(units_N[1:] != units_N[:-1], (0, 1), value=True)
    behind_NW = hidden_NW.roll(-1, dims=0).masked_fill(ends_N[:, None], 0.0)
    asked_N = (free_BT | next_BT)[left_BT]
    insertions_NC, _ = model.edits(hidden_NW[asked_N], behind_NW[asked_N])
    most = insertions_NC.shape[1] - 1  # and all above it
    return F.cross_entropy(insertions_NC, numbers_N[asked_N].clamp(max=most), reduction="sum")


def _stretches(free_BT: torch.Tensor) -> torch.Tensor:
    """int64 [B, T]; runs of free tokens between those that stay, numbered along each row."""
    changes_BT = ~free_BT
    changes_BT[:, 1:] |= ~free_BT[:, :-1]
    return changes_BT.long().cumsum(dim=1)
