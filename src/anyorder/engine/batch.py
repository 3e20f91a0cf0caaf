"""Packs the pieces of one pass into flat tensors and attention groups; legend in `core.batch`.

Pieces with the same number of new tokens and similar amounts of past are attended together, padded
to the longest past. The rest of the network sees no padding at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import torch

from anyorder.cache.store import PagedStore
from anyorder.core.attention import Canvas, Causal
from anyorder.core.batch import AttentionGroup, CrossMemory, PackedBatch
from anyorder.core.sequence import Sequence
from anyorder.engine.ragged import ragged_rows
from anyorder.engine.scheduler import Piece

MAX_PADDED_QUERIES = 64
"""Pieces longer than this are attended one by one: padding their past would cost more than it
saves."""


def pack(
    pieces: Seq[Piece],
    store: PagedStore,
    device: torch.device,
    *,
    num_layers: int | None = None,
    is_ragged: bool = False,
) -> tuple[PackedBatch, list[Piece]]:
    """The pass's tensors, and the pieces in the order of their rows. `is_ragged`: they are attended
    in one call, not in groups."""
    buckets: dict[tuple[int, ...], list[Piece]] = {}
    for index, piece in enumerate(pieces):
        key = () if is_ragged else _bucket(piece, index, store)
        buckets.setdefault(key, []).append(piece)
    ordered = [piece for bucket in buckets.values() for piece in bucket]
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for piece in ordered:
        num_tokens = len(piece.tokens)
        tokens.extend(piece.tokens)
        positions.extend(piece.start + depth for depth in piece.attention.depths(num_tokens))
        slots.extend(store.slots(piece.job.sequence, piece.start, piece.start + num_tokens))
    flat = torch.tensor([tokens, positions, slots], device=device)
    groups, row = [], 0
    for bucket in () if is_ragged else buckets.values():
        groups.append(_group(bucket, row, flat[1], store))
        row += len(bucket) * len(bucket[0].tokens)
    taps = {layer for piece in pieces for layer in piece.job.request.outputs.features}
    batch = PackedBatch(
        tokens_N=flat[0],
        positions_N=flat[1],
        slots_N=flat[2],
        groups=tuple(groups),
        ragged=ragged_rows(ordered, flat[1], store) if is_ragged else None,
        num_layers=num_layers,
        taps=dict.fromkeys(sorted(taps)),
        conditioning=tuple(_conditioning(ordered)),
        canvas_N=_canvas(ordered, device),
        noise_N=_noise(ordered, device),
    )
    return batch, ordered


def _conditioning(ordered: Seq[Piece]) -> Iterator[tuple[int, torch.Tensor]]:
    """Stretches of conditioned rows, by their first row."""
    first_row = 0
    for piece in ordered:
        start, end = piece.start, piece.start + len(piece.tokens)
        for position, tensor in reversed(piece.job.sequence.conditions):
            begin = max(start, position)
            stop = min(end, position + len(tensor))
            if stop <= start:
                break  # they rise, and new tokens are at the end
            if begin < stop:
                yield first_row + begin - start, tensor[begin - position : stop - position]
        first_row += len(piece.tokens)


def _canvas(ordered: Seq[Piece], device: torch.device) -> torch.Tensor | None:
    """Which rows are a noisy canvas; None where there is none."""
    if not any(isinstance(piece.attention, Canvas) for piece in ordered):
        return None
    known = [know for p in ordered for know in [isinstance(p.attention, Canvas)] * len(p.tokens)]
    return torch.tensor(known, device=device)


def _noise(ordered: Seq[Piece], device: torch.device) -> torch.Tensor | None:
    """Each row's share of noise; None where no request says one."""
    if all(piece.job.request.noise is None for piece in ordered):
        return None
    shares = [share for p in ordered for share in [p.job.request.noise or 0.0] * len(p.tokens)]
    return torch.tensor(shares, dtype=torch.float32, device=device)


def _bucket(piece: Piece, index: int, store: PagedStore) -> tuple[int, ...]:
    """Pieces of equal key are attended together."""
    num_tokens = len(piece.tokens)
    is_causal = isinstance(piece.attention, Causal)
    if num_tokens > MAX_PADDED_QUERIES or not is_causal:
        return (num_tokens, -1, index)
    num_pages = store.pages_for(piece.start + num_tokens) if piece.start else 0
    memory = piece.job.sequence.memory
    if memory is None:
        return (num_tokens, num_pages.bit_length())
    return (num_tokens, num_pages.bit_length(), len(memory.pages).bit_length())


def _group(
    bucket: list[Piece], first_row: int, positions_N: torch.Tensor, store: PagedStore
) -> AttentionGroup:
    num_requests, num_queries = len(bucket), len(bucket[0].tokens)
    query_positions_RQ = positions_N[first_row : first_row + num_requests * num_queries].view(
        num_requests, num_queries
    )
    device = positions_N.device
    attention = bucket[0].attention
    memory = _memory(bucket, device)
    if all(piece.start == 0 for piece in bucket):
        # Fresh tokens see only each other; nothing needs to be read back from the pool.
        visible = None if isinstance(attention, Causal) else attention.visible(num_queries)
        return AttentionGroup(
            first_row=first_row,
            num_requests=num_requests,
            num_queries=num_queries,
            pages_RP=None,
            query_positions_RQ=query_positions_RQ,
            key_positions_RK=query_positions_RQ,
            visible_RQK=None if visible is None else visible[None].to(device),
            memory=memory,
        )
    num_pages = max(store.pages_for(piece.start + num_queries) for piece in bucket)
    rows = [piece.job.sequence.row for piece in bucket]
    key_positions_RK = visible_RQK = past_R = None
    if not isinstance(attention, Causal):
        # Alone in its group. The past is visible to all, new tokens as the attention says.
        start = bucket[0].start
        past_R = torch.tensor([start], device=device)
        visible_RQK = attention.visible(num_queries)[None].to(device)
        key_positions_RK = _moved(bucket[0].job.sequence, num_pages * store.page_size, device)
        if key_positions_RK is not None:
            key_positions_RK[0, start : start + num_queries] = query_positions_RQ[0]
    window_positions_RQ = None
    if isinstance(attention, Canvas):
        window_positions_RQ = torch.full_like(query_positions_RQ, bucket[0].start)
    return AttentionGroup(
        first_row=first_row,
        num_requests=num_requests,
        num_queries=num_queries,
        pages_RP=store.table.tensor()[:, :num_pages],
        page_rows_R=torch.tensor(rows, device=device),
        query_positions_RQ=query_positions_RQ,
        key_positions_RK=key_positions_RK,
        window_positions_RQ=window_positions_RQ,
        visible_RQK=visible_RQK,
        past_R=past_R,
        memory=memory,
    )


def _moved(sequence: Sequence, num_keys: int, device: torch.device) -> torch.Tensor | None:
    """Positions [1, K] of keys, where some are stored in another order than that of the text (what
    is left of a tree); None: where none are."""
    positions_1K = None
    for span in sequence.spans:
        depths = span.attention.depths(span.length)
        if not isinstance(depths, range):
            if positions_1K is None:
                positions_1K = torch.arange(num_keys, device=device)[None]
            moved = torch.tensor(depths[: span.num_kept], device=device)
            positions_1K[0, span.start : span.end] = span.start + moved
    return positions_1K


def _memory(bucket: list[Piece], device: torch.device) -> CrossMemory | None:
    """What the pieces read of an encoder's sequences, padded to the longest."""
    found = [piece.job.sequence.memory for piece in bucket]
    memories = [memory for memory in found if memory is not None]
    if not memories:
        return None
    assert len(memories) == len(bucket), "some read an encoder's text and others none"
    store = memories[0].store
    assert isinstance(store, PagedStore), "an encoder's sequences are the engine's"
    num_pages = max(len(memory.pages) for memory in memories)
    rows = torch.tensor([memory.row for memory in memories], device=device)
    lengths_R11 = torch.tensor([memory.length for memory in memories], device=device)[:, None, None]
    return CrossMemory(
        pages_RP=store.table.tensor()[rows, :num_pages],
        pool=store.pool,
        visible_RQS=torch.arange(num_pages * store.page_size, device=device) < lengths_R11,
    )
