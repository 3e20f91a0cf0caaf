"""Mask-predict: hide some of a translation's tokens, predict them from the rest and the source.

CMLM (Ghazvininejad et al., arXiv 1904.09324): of a text's N tokens, a number drawn evenly from 1 to
N is masked, and the length is predicted from the source. Masking everything is one of the draws (as
decoding begins with it), or with `masking = "all"` every one. `masking = "glancing"` is GLAT (Qian
et al., arXiv 2008.07905): everything is masked, a first pass without gradient predicts it, and the
more it gets wrong, the more of the text a second pass is shown, which learns the rest.

With `weighting = "likelihood"` the masked tokens of a text count N over their number: the mean is
then the chain rule's cost averaged over all orders, a bound on the negative log-likelihood given
the length. CMLM itself counts every masked token alike.

The text's end is a token of it like others; where it begins is given. The mask token is never
predicted. A text's length counts its targets, the end among them.

Shape suffixes: B rows, T target and S source tokens each, U documents (and padding), M masked
tokens, W width, V vocabulary, L lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import InvalidRequest, UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_positions, document_starts, same_document
from anyorder.core.pairs import encode_sources, reads
from anyorder.sampling.row_costs import row_costs
from anyorder.sampling.smoothing import smoothed_nats
from anyorder.sampling.subsets import count, random_subsets, units


@dataclass(frozen=True, kw_only=True)
class MaskPredict(Objective):
    """Predict the masked tokens of a translation, and how long it is."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    masking: Annotated[
        Literal["uniform", "all", "glancing"],
        "how many tokens are masked: any number, all, or all but some of a first pass's mistakes",
    ] = "uniform"
    weighting: Annotated[
        Literal["tokens", "likelihood"], "masked tokens count alike, or bound the likelihood"
    ] = "tokens"
    label_smoothing: Annotated[
        float, Range(0.0, 0.9), "share of the target spread over the whole vocabulary"
    ] = 0.0
    length_weight: Annotated[float, Range(0.0, 10.0), "of the length's cost, by text token"] = 0.1
    first_ratio: Annotated[
        float, Range(0.0, 1.0), "glancing: tokens shown for each mistake, at the start of the run"
    ] = 0.5
    last_ratio: Annotated[float, Range(0.0, 1.0), "glancing: the same at its end"] = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting == "likelihood" and self.masking != "uniform":
            raise InvalidRequest(
                f"weighting = 'likelihood' is an average over masking = 'uniform', got "
                f"{self.masking!r}; choose one of the two."
            )

    def check(self, abilities: Abilities) -> None:
        """A length to learn needs a head for it."""
        super().check(abilities)
        if self.length_weight and not abilities.num_lengths:
            raise UserError(
                f"mask_predict learns the length, but {abilities.name} has no length head; give "
                "[model] one, or length_weight = 0."
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Over weight, nats per masked token; `length_nats` are those of a text's length, weighted
        like the text."""
        states_BSW, source_documents_BS = encode_sources(model, batch)
        memory = reads(states_BSW, source_documents_BS, batch.documents_BT)
        units_BT = units(batch.documents_BT)
        counts_U = count(batch.targets_BT, units_BT)
        masked_BT, factors_U = self._masks(model, batch, memory, units_BT, counts_U, rng)
        hidden_MW = _hidden(model, batch, memory, masked_BT)[masked_BT.flatten()]
        banned = model.abilities.mask_token

        def cost(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
            return smoothed_nats(
                logits_MV, targets_M, smoothing=self.label_smoothing, banned=banned
            )

        costs_M2 = row_costs(model, hidden_MW, cost, batch.tokens_BT[masked_BT])
        factors_M1 = factors_U[units_BT[masked_BT]][:, None]
        total, nats = (costs_M2 * factors_M1).sum(0).unbind()
        metrics = {"nats": float(nats.detach())}
        # What a text weighs is what its tokens weigh on average, so that it is no random number.
        whole = self.masking != "uniform" or self.weighting == "likelihood"
        weights_U = counts_U.double() if whole else (counts_U + 1) / 2 * (counts_U > 0)
        if self.length_weight:
            lengths_U = _length_nats(model, batch, states_BSW, source_documents_BS, counts_U)
            length = (lengths_U * weights_U.to(lengths_U.dtype)).sum()
            total = total + self.length_weight * length
            metrics["length_nats"] = float(length.detach())
        return Loss(total=total, weight=float(weights_U.sum()), metrics=metrics)

    def _masks(
        self,
        model: TrainableModel,
        batch: TrainingBatch,
        memory: CrossMemory,
        units_BT: torch.Tensor,
        counts_U: torch.Tensor,
        rng: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is masked [B, T], and what each document's masked tokens count [U]."""
        targets_BT = batch.targets_BT
        ones_U = torch.ones_like(counts_U, dtype=torch.float32)
        if self.masking == "all":
            return targets_BT, ones_U
        if self.masking == "glancing":
            wrong_U = count(self._mistakes(model, batch, memory), units_BT)
            ratio = self.first_ratio + (self.last_ratio - self.first_ratio) * batch.progress
            shown_U = (ratio * wrong_U).round().long()
            return targets_BT & ~random_subsets(targets_BT, units_BT, shown_U, rng), ones_U
        draws_U = torch.rand(len(counts_U), generator=rng, dtype=torch.float64)
        sizes_U = (draws_U.to(counts_U.device) * counts_U).long() + 1
        masked_BT = random_subsets(targets_BT, units_BT, sizes_U, rng)
        return masked_BT, counts_U / sizes_U if self.weighting == "likelihood" else ones_U

    @torch.no_grad()
    def _mistakes(
        self, model: TrainableModel, batch: TrainingBatch, memory: CrossMemory
    ) -> torch.Tensor:
        """bool [B, T]; targets that a pass over nothing but masks gets wrong."""
        targets_BT = batch.targets_BT
        hidden_MW = _hidden(model, batch, memory, targets_BT)[targets_BT.flatten()]
        banned = model.abilities.mask_token

        def wrong(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
            logits_MV[:, banned] = -torch.inf
            return logits_MV.argmax(dim=1) != targets_M

        wrong_BT = torch.zeros_like(targets_BT)
        wrong_BT[targets_BT] = row_costs(model, hidden_MW, wrong, batch.tokens_BT[targets_BT])
        return wrong_BT


def _hidden(
    model: TrainableModel, batch: TrainingBatch, memory: CrossMemory, masked_BT: torch.Tensor
) -> torch.Tensor:
    mask_token = model.abilities.mask_token
    assert mask_token is not None, "check() refuses models without a mask token"
    documents_BT = batch.documents_BT
    packed = dense_batch(
        batch.tokens_BT.masked_fill(masked_BT, mask_token),
        same_document(documents_BT),
        document_positions(documents_BT),
        memory=memory,
    )
    return model.hidden(packed)


def _length_nats(
    model: TrainableModel,
    batch: TrainingBatch,
    states_BSW: torch.Tensor,
    source_documents_BS: torch.Tensor,
    counts_U: torch.Tensor,
) -> torch.Tensor:
    """-log p of each document's number of targets, [U]; 0 for documents without any."""
    # Sources and targets are numbered alike, each row's documents from 0.
    wanted_BU = document_starts(batch.documents_BT) & (batch.documents_BT >= 0)
    heads_BS = document_starts(source_documents_BS) & (source_documents_BS >= 0)
    assert int(wanted_BU.sum()) == int(heads_BS.sum()), "every document has its source"
    used_U = units(batch.documents_BT)[wanted_BU]
    logits_UL = model.length_logits(states_BSW[heads_BS])
    nats_U = F.cross_entropy(logits_UL, counts_U[used_U], reduction="none")
    found_U = nats_U.new_zeros(len(counts_U)).index_put((used_U,), nats_U)
    return found_U * (counts_U > 0)
