"""The pieces of one pass as one table, for attention that takes all requests in one call; legend
in `core.batch`."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from anyorder.cache.store import PagedStore
from anyorder.core.attention import Canvas, Causal
from anyorder.core.batch import RaggedRows
from anyorder.engine.scheduler import Piece


def fits(pieces: Seq[Piece], has_windows: bool) -> bool:
    """Can `RaggedRows` describe them? Not where a window goes over keys that are stored in another
    order than that of the text (what is left of a tree)."""
    return not has_windows or not any(
        not isinstance(span.attention.depths(span.length), range)
        for piece in pieces
        if not isinstance(piece.attention, Causal)
        for span in piece.job.sequence.spans
    )


def ragged_rows(pieces: Seq[Piece], positions_N: torch.Tensor, store: PagedStore) -> RaggedRows:
    """The pieces in the order of their rows."""
    device = positions_N.device
    table: list[tuple[int, int, int, int, int]] = []
    masks: list[torch.Tensor] = []
    window_positions: list[int] = []
    first, num_told = 0, 0
    for piece in pieces:
        num_tokens, page_row = len(piece.tokens), piece.job.sequence.row
        assert page_row is not None, "the pass has pages for its tokens"
        told_from = -1
        if not isinstance(piece.attention, Causal):
            told_from = num_told
            masks.append(piece.attention.visible(num_tokens).flatten())
            num_told += num_tokens**2
        table.append((first, num_tokens, piece.start, page_row, told_from))
        first += num_tokens
    window_positions_N = positions_N
    if any(isinstance(piece.attention, Canvas) for piece in pieces):
        for piece in pieces:
            depths = piece.attention.depths(len(piece.tokens))
            of_all = isinstance(piece.attention, Canvas)
            window_positions += [piece.start + (0 if of_all else depth) for depth in depths]
        window_positions_N = torch.tensor(window_positions, device=device)
    told = masks or [torch.zeros(1, dtype=torch.bool)]
    return RaggedRows(
        requests_R5=torch.tensor(table, device=device),
        pages_TP=store.table.tensor(),
        visible_M=torch.cat(told).to(device),
        window_positions_N=window_positions_N,
        most_rows=max(len(piece.tokens) for piece in pieces),
        most_keys=max(piece.start + len(piece.tokens) for piece in pieces),
    )
