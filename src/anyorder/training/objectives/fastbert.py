"""FastBERT: a classifier of texts whose early layers learn to answer for the last one.

Liu et al., arXiv 2004.02178, in two runs. In the first, backbone and last classifier learn the
labels. In the second, whose network has exits and keeps the rest frozen (`exits` of the classifier
network), every exit learns the last classifier's probabilities; labels are not looked at. The
divergence is forward as in the authors' code; their paper writes the reverse one.

A labelled document is text that is given and a label that is the target, as prompt and text in a
file of pairs: the target's first token is the label, the tokens before it are what is classified.
A document that was cut off before its label is no lesson for the first run.

Shape suffixes: B sequences, T tokens each, M documents, K exits, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.packing import document_positions, document_starts, same_document
from anyorder.sampling.divergences import Divergence, divergence


@dataclass(frozen=True, kw_only=True)
class Fastbert(Objective):
    """Tell what kind of text it is, after as few layers as it takes."""

    attention: ClassVar[AttentionKind] = "bidirectional"

    divergence: Annotated[
        Divergence, "of an exit from the last classifier; reverse: the other way round"
    ] = "forward"

    def check(self, abilities: Abilities) -> None:
        super().check(abilities)
        if abilities.kind != "classifier":
            raise UserError(
                f"fastbert trains classifiers; {abilities.name} is none: give [model] kind = "
                '"classifier".'
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Sum over documents: nats of the label, or of all exits' divergences. The metric is how
        often the label is right, or how many of the exits agree with the last classifier."""
        documents_BT, tokens_BT = batch.documents_BT, batch.tokens_BT
        read_BT = (documents_BT >= 0) & ~batch.targets_BT
        # What is not read, labels among it, is together like padding.
        texts_BT = documents_BT.masked_fill(~read_BT, -1)
        positions_BT = document_positions(documents_BT)
        packed = dense_batch(tokens_BT, same_document(texts_BT), positions_BT)
        hidden_BTW = model.hidden(packed).view(*tokens_BT.shape, -1)
        if model.abilities.num_heads:
            return self._distil(model, hidden_BTW[document_starts(documents_BT) & read_BT])
        labelled_BT = batch.targets_BT & read_BT.roll(1, dims=1) & (positions_BT > 0)
        sequences_M, places_M = labelled_BT.nonzero(as_tuple=True)
        first_M = places_M - positions_BT[labelled_BT]
        logits_MV, labels_M = model.logits(hidden_BTW[sequences_M, first_M]), tokens_BT[labelled_BT]
        nats_M = F.cross_entropy(logits_MV, labels_M, reduction="none")
        if unknown := labels_M[nats_M.isinf()].tolist():
            raise UserError(
                f"a document's label begins with token {unknown[0]}, which begins none of the "
                "classifier's labels; add it to [model] labels, or leave the document out."
            )
        right = (logits_MV.argmax(dim=-1) == labels_M).sum()
        return Loss(total=nats_M.sum(), weight=float(len(nats_M)), metrics={"right": float(right)})

    def _distil(self, model: TrainableModel, hidden_MW: torch.Tensor) -> Loss:
        exits_MKV, last_MV = model.heads(hidden_MW), model.logits(hidden_MW)
        last_MKV = last_MV[:, None].expand_as(exits_MKV)
        total = divergence(exits_MKV, last_MKV, self.divergence).sum()
        agreeing = exits_MKV.argmax(dim=-1) == last_MKV.argmax(dim=-1)
        return Loss(
            total=total,
            weight=float(len(hidden_MW)),
            metrics={"agreeing": float(agreeing.double().mean(dim=1).sum())},
        )
