"""Pairs packed into rows: what a decoder reads of the sources of its documents.

Shape suffixes: B rows, T decoder tokens and S source tokens each, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import UserError
from anyorder.core.packing import document_positions, same_document

if TYPE_CHECKING:
    import torch

    from anyorder.core.objective import TrainableModel, TrainingBatch


def encode_sources(
    model: TrainableModel, batch: TrainingBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The encoder's output [B, S, W], and the documents [B, S] it belongs to."""
    if batch.sources_BS is None or batch.source_documents_BS is None:
        raise UserError(
            "this objective learns from pairs of a source and a target, and the data have no "
            "sources; use the network of kind encoder_decoder, whose data are pairs."
        )
    documents_BS = batch.source_documents_BS
    packed = dense_batch(
        batch.sources_BS, same_document(documents_BS), document_positions(documents_BS)
    )
    return model.encode(packed).view(*documents_BS.shape, -1), documents_BS


def reads(
    states_BSW: torch.Tensor, source_documents_BS: torch.Tensor, documents_BT: torch.Tensor
) -> CrossMemory:
    """Each document of the decoder's rows sees its own source."""
    visible_BTS = documents_BT[:, :, None] == source_documents_BS[:, None, :]
    return CrossMemory(states_RSW=states_BSW, visible_RQS=visible_BTS)
