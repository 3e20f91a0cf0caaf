"""Planned diffusion: write a plan token by token, then denoise all its spans at once.

Israel et al., arXiv 2510.18087: p(plan) p(span 1 | plan) p(span 2 | plan) ..., the plan by the
chain rule and each span by masked diffusion (see masked_diffusion). `core.plans` says how a plan is
written and who sees whom. The token after a plan, a sync or the text's end, is predicted by the
plan's last token, as the spans are not there yet when it is decided.

Behind the clean text, the same pass runs the spans once more with masks: a noisy span sees itself
and what its clean one sees of others, and nothing sees it. So text behind a sync is learnt from
clean spans, and spans from clean text, as decoding has them. (The paper's code runs noisy spans
alone, and the text behind them is learnt from noise.) A token outside of spans is predicted by the
row before it, a masked one at its own place. Every span draws its own share of masks. Text without
any tag is learnt as by next_token. No token is banned but the mask token, and that in spans.

Not here: spans that see each other (the paper's dense variant).

Shape suffixes: B rows, T tokens each, S tokens of a row's spans (padded), D = T + S, M rows with a
target, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, ClassVar

import torch

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.options import Range
from anyorder.core.packing import document_positions, document_starts, same_document
from anyorder.core.plans import TAGS, PlanTokens, plan_visible, span_numbers
from anyorder.sampling.noise import MaskSchedule, draw_masks
from anyorder.sampling.row_costs import row_nats


@dataclass(frozen=True, kw_only=True)
class PlannedDiffusion(Objective):
    """Predict plans token by token and the masked tokens of their spans."""

    needs_mask_token: ClassVar[bool] = True
    control_tokens: ClassVar[tuple[str, ...]] = TAGS

    span_weight: Annotated[float, Range(0.0, 100.0), "of the spans' loss beside the plans'"] = 1.0
    schedule: Annotated[MaskSchedule, "how often each share of masks is drawn"] = "linear"
    min_noise: Annotated[float, Range(0.0, 1.0), "smallest share of masks drawn"] = 1e-3

    def check(self, abilities: Abilities) -> None:
        """The tags must be control tokens of the tokenizer."""
        super().check(abilities)
        if abilities.plan_tokens is None:
            raise UserError(
                f"PlannedDiffusion needs the control tokens {' '.join(TAGS)}; {abilities.name} "
                "lacks some. Give [data] add_tokens = true, which adds them, or another tokenizer."
            )

    def trained(self, abilities: Abilities) -> Abilities:
        """Plans are causal, spans bidirectional."""
        found = super().trained(abilities)
        return replace(found, attention=frozenset({"causal", "bidirectional"}))

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Over weight, an estimate of the bound in nats per target token of text and spans."""
        mask_token, tags = model.abilities.mask_token, model.abilities.plan_tokens
        assert mask_token is not None and tags is not None, "check() refuses models without them"
        tokens_BT, documents_BT = batch.tokens_BT, batch.documents_BT
        spans_BT = _spans(tokens_BT, documents_BT, tags)
        is_tag_BT = (tokens_BT == tags.span) | (tokens_BT == tags.span_end)
        learnt_BT = batch.targets_BT & (spans_BT >= 0) & ~is_tag_BT
        masked_BT, weights_BT = draw_masks(
            document_starts(spans_BT),
            learnt_BT,
            schedule=self.schedule,
            lowest=self.min_noise,
            highest=1.0,
            rng=rng,
        )

        # The spans' tokens of each row, in order; where a row has fewer, other tokens fill up.
        num_inside = int((spans_BT >= 0).sum(1).max())
        order_BS = (spans_BT < 0).int().argsort(dim=1, stable=True)[:, :num_inside]
        masked_BS = masked_BT.gather(1, order_BS)
        noisy_BS = tokens_BT.gather(1, order_BS).masked_fill(masked_BS, mask_token)
        positions_BT = document_positions(documents_BT)
        syncs_BT = (tokens_BT == tags.sync).cumsum(1)
        packed = dense_batch(
            torch.cat((tokens_BT, noisy_BS), dim=1),
            _visible(
                plan_visible(spans_BT, syncs_BT) & same_document(documents_BT), spans_BT, order_BS
            ),
            torch.cat((positions_BT, positions_BT.gather(1, order_BS)), dim=1),
        )
        length = tokens_BT.shape[1]
        hidden_BDW = model.hidden(packed).view(len(tokens_BT), length + num_inside, -1)

        before_BT = _text_before(spans_BT, documents_BT)
        rows, places = (batch.targets_BT & (spans_BT < 0) & (before_BT >= 0)).nonzero(as_tuple=True)
        hidden_MW = hidden_BDW[rows, before_BT[rows, places]]
        text = row_nats(model, hidden_MW, tokens_BT[rows, places]).sum()
        hidden_MW = hidden_BDW[:, length:][masked_BS]
        places_M = order_BS[masked_BS]
        rows_M = masked_BS.nonzero()[:, 0]
        nats_M = row_nats(model, hidden_MW, tokens_BT[rows_M, places_M], banned=mask_token)
        spans = (nats_M * weights_BT[rows_M, places_M]).sum()
        return Loss(
            total=text + self.span_weight * spans,
            weight=float(len(rows) + learnt_BT.sum()),
            metrics={"nats": float(text.detach() + spans.detach()), "text": float(text.detach())},
        )


def _spans(tokens_BT: torch.Tensor, documents_BT: torch.Tensor, tags: PlanTokens) -> torch.Tensor:
    """int64 [B, T]; which span of its row a token belongs to, -1: none."""
    found = []
    for tokens, documents in zip(tokens_BT.tolist(), documents_BT.tolist(), strict=True):
        numbers: list[int] = []
        for document, run in groupby(zip(documents, tokens, strict=True), key=lambda pair: pair[0]):
            own = span_numbers([token for _, token in run], tags)
            first = max(numbers, default=-1) + 1
            inside = [first + number if number >= 0 else -1 for number in own]
            numbers += inside if document >= 0 else [-1] * len(own)
        found.append(numbers)
    return torch.tensor(found, device=tokens_BT.device)


def _text_before(spans_BT: torch.Tensor, documents_BT: torch.Tensor) -> torch.Tensor:
    """int64 [B, T]; the last place before each in its document that is outside of spans, or -1."""
    places_T = torch.arange(spans_BT.shape[1], device=spans_BT.device)
    last_BT = torch.where(spans_BT < 0, places_T, -1).cummax(dim=1).values
    before_BT = torch.cat((torch.full_like(last_BT[:, :1], -1), last_BT[:, :-1]), dim=1)
    together_BT = documents_BT.gather(1, before_BT.clamp(min=0)) == documents_BT
    return torch.where(together_BT, before_BT, -1)


def _visible(
    clean_BTT: torch.Tensor, spans_BT: torch.Tensor, order_BS: torch.Tensor
) -> torch.Tensor:
    """[B, D, D]: who sees whom in [clean ; noisy]."""
    length, num_inside = spans_BT.shape[1], order_BS.shape[1]
    spans_BS = spans_BT.gather(1, order_BS)
    seen_BST = clean_BTT.gather(1, order_BS[:, :, None].expand(-1, -1, length))
    others_BST = seen_BST & (
        (spans_BS[:, :, None] != spans_BT[:, None, :]) | (spans_BS < 0)[..., None]
    )
    own_BSS = (spans_BS[:, :, None] == spans_BS[:, None, :]) & (spans_BS >= 0)[..., None]
    nothing_BTS = clean_BTT.new_zeros(len(clean_BTT), length, num_inside)
    top = torch.cat((clean_BTT, nothing_BTS), dim=2)
    return torch.cat((top, torch.cat((others_BST, own_BSS), dim=2)), dim=1)
