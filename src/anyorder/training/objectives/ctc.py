"""Translation in one pass: a label or a blank at each of many places, repeats merged.

Connectionist temporal classification (Graves et al., ICML 2006) for translation (Libovicky and
Helcl, arXiv 1811.04719): the decoder is given several places for each source token, all masks but
the first, where the text begins, and predicts a token or a blank at each other one. The cost is
minus the log of the summed probability of all sequences that become the text once repeats are
merged and blanks are dropped. torch's own algorithm does the sum. The blank is the mask token.

Texts that need more places than there are are left out, of the weight too, and counted as
`left_out`. Not done: glancing.

Shape suffixes: D documents, K tokens of one, L places of one, W width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities, AttentionKind
from anyorder.core.objective import Loss, Objective, TrainableModel, TrainingBatch
from anyorder.core.packing import document_positions, same_document
from anyorder.core.pairs import encode_sources, reads
from anyorder.sampling.row_costs import KEPT_LOGITS
from anyorder.sampling.vertices import Graphs


@dataclass(frozen=True, kw_only=True)
class Ctc(Objective):
    """Predict texts with blanks and repeats."""

    attention: ClassVar[AttentionKind] = "bidirectional"
    needs_mask_token: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    def check(self, abilities: Abilities) -> None:
        """It needs places, and has no use for links."""
        super().check(abilities)
        if not abilities.vertices_per_token or abilities.num_links:
            raise UserError(
                f"ctc needs a network with vertices and without links, which {abilities.name} is "
                "not; give [model] vertices_per_token and links = false."
            )

    def loss(self, model: TrainableModel, batch: TrainingBatch, rng: torch.Generator) -> Loss:
        """Nats over the targets of the documents that fit."""
        blank = model.abilities.mask_token
        assert blank is not None, "check() refuses models without a mask token"
        states_BSW, source_documents_BS = encode_sources(model, batch)
        graphs = Graphs.of(batch, source_documents_BS, model.abilities.vertices_per_token)
        # Two equal tokens in a row need a blank between them.
        repeats_DK = (graphs.texts_DK[:, 1:] == graphs.texts_DK[:, :-1]) & graphs.tokens_DK[:, 1:]
        fits_D = graphs.num_tokens_D + repeats_DK.sum(dim=1) < graphs.num_vertices_D
        graphs = graphs.some(fits_D)
        nothing_DK = torch.zeros_like(graphs.texts_DK)
        packed = dense_batch(
            graphs.inputs(blank, nothing_DK, nothing_DK.bool()),
            same_document(graphs.documents_BG),
            document_positions(graphs.documents_BG),
            memory=reads(states_BSW, source_documents_BS, graphs.documents_BG),
        )
        hidden_MW = model.hidden(packed)[graphs.places()[0]]
        documents = torch.split(hidden_MW, graphs.num_vertices_D.tolist())
        total = hidden_MW.sum() * 0.0  # with a gradient, where there is no text at all

        def cost(hidden_DLW: torch.Tensor, part: slice) -> torch.Tensor:
            logits_DLV = model.logits(hidden_DLW.flatten(0, 1)).view(*hidden_DLW.shape[:2], -1)
            return F.ctc_loss(
                logits_DLV.log_softmax(dim=-1).transpose(0, 1),
                graphs.texts_DK[part][graphs.tokens_DK[part]],
                graphs.num_vertices_D[part] - 1,
                graphs.num_tokens_D[part],
                blank=blank,
                reduction="sum",
            )

        for part in graphs.parts(KEPT_LOGITS // model.abilities.vocabulary_size, power=1):
            # The first place holds the given start and emits nothing.
            hidden_DLW = pad_sequence([each[1:] for each in documents[part]], batch_first=True)
            nats = checkpoint(cost, hidden_DLW, part, use_reentrant=False, preserve_rng_state=False)
            total = total + nats
        return Loss(
            total=total,
            weight=float(graphs.num_tokens_D.sum()),
            metrics={"nats": float(total.detach()), "left_out": float(graphs.num_left_out)},
        )
