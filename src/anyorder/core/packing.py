"""Documents packed into one row: where each begins, positions within it, who is with whom.

A document is a run of equal numbers in `TrainingBatch.documents_BT`. Padding is treated as one more
document: its tokens see each other, so that no token of a row sees nothing.

Shape suffixes: B rows, T tokens each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def document_starts(documents_BT: torch.Tensor) -> torch.Tensor:
    """bool [B, T]; is the token its document's first?"""
    import torch

    first_B1 = torch.ones_like(documents_BT[:, :1], dtype=torch.bool)
    return torch.cat((first_B1, documents_BT[:, 1:] != documents_BT[:, :-1]), dim=1)


def document_positions(documents_BT: torch.Tensor) -> torch.Tensor:
    """int64 [B, T]; how many tokens of its document come before each."""
    import torch

    places_BT = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = torch.where(document_starts(documents_BT), places_BT, 0)
    return places_BT - starts_BT.cummax(dim=1).values


def same_document(documents_BT: torch.Tensor) -> torch.Tensor:
    """bool [B, T, T]; do two tokens belong to one document?"""
    return documents_BT[:, :, None] == documents_BT[:, None, :]


def causal_within(documents_BT: torch.Tensor) -> torch.Tensor | None:
    """[B, T, T], causal within documents; None, which is much faster, where no row has a second
    one."""
    if bool(((documents_BT == documents_BT[:, :1]) | (documents_BT < 0)).all()):
        return None  # padding behind the document sees it, and nothing sees the padding
    return same_document(documents_BT).tril()
