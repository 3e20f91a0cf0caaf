"""Passes of few shapes, recorded once and repeated: CUDA graphs, where a pass of few rows would
otherwise take longer to launch than to compute.

A pass is padded to a bucket of rows and copied into tensors that stay where they are; whatever has
once been recorded with these is repeated for all passes of the bucket. Padding is a request of its
own, whose keys and values go to the pool's blank page, so nobody else sees it. A bucket is recorded
when it comes up again, and those used least recently are forgotten. What records is a parameter:
`model.backends.cuda_graphs` on a GPU.

Not repeated, but run as they are: passes of many rows, those that are attended group by group, and
those whose rows are conditioned on something.

Shape suffixes: as in `core.batch`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from anyorder.cache.pool import Pool
from anyorder.core.batch import Network, PackedBatch

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Passes are padded to the next of these; longer ones compute for longer than they launch."""
LEAST_KEYS = 512
"""Keys are counted up to powers of two from here."""
RECORDED_AT = 3
"""The pass of a kind that is recorded: recording takes some passes' time."""
MOST_RECORDS = 48
"""Kinds of passes that are remembered at once."""

Repeat = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """What can repeat work on tensors that stay where they are."""

    def record(self, run: Repeat) -> Repeat:
        """Repeats what `run` did, on what its tensors then hold; `run` may be called first, several
        times. What it returns is overwritten by the next repetition of any."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Passes that are repeated from one record."""

    num_rows: int
    num_keys: int
    single: bool
    """Has every request one row?"""
    num_layers: int | None
    taps: tuple[int, ...]
    has_canvas: bool
    has_noise: bool
    table: tuple[int, ...]
    """The page table's address and shape; it moves when it grows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A kind's tensors and what repeats its pass."""

    batch: PackedBatch
    repeat: Repeat


class StaticPasses:
    """Runs one network's passes, repeating what comes up often."""

    def __init__(self, network: Network, pool: Pool, recorder: Recorder) -> None:
        self._network = network
        self._pool = pool
        self._recorder = recorder
        self._records: OrderedDict[Kind, Record] = OrderedDict()
        self._num_seen: OrderedDict[Kind, int] = OrderedDict()
        # Padding of any length ends like this.
        num_rows = ROWS[-1]
        places_N = torch.arange(num_rows, device=pool.device)
        self._zeros_N = torch.zeros_like(places_N)
        self._slots_N = pool.blank * pool.page_size + places_N % pool.page_size

    @property
    def num_records(self) -> int:
        """Kinds that are repeated now."""
        return len(self._records)

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """See `core.batch.Network.hidden`."""
        kind = _kind(batch)
        if kind is None:
            return self._network.hidden(batch, self._pool)
        record = self._records.get(kind)
        if record is None:
            seen = self._num_seen.pop(kind, 0) + 1
            self._num_seen[kind] = seen
            if len(self._num_seen) > MOST_RECORDS:
                self._num_seen.popitem(last=False)
            if seen < RECORDED_AT:
                return self._network.hidden(batch, self._pool)
            record = self._record(kind, batch)
        self._records.move_to_end(kind)
        self._fill(record.batch, batch)
        hidden_NW = record.repeat()
        num_rows = len(batch.tokens_N)
        for layer in batch.taps:
            tap_NW = record.batch.taps[layer]
            assert tap_NW is not None, "the network has filled it in"
            batch.taps[layer] = tap_NW[:num_rows].clone()
        return hidden_NW[:num_rows].clone()

    def _record(self, kind: Kind, batch: PackedBatch) -> Record:
        static = self._open(kind, batch)
        self._fill(static, batch)
        if len(self._records) == MOST_RECORDS:
            self._records.popitem(last=False)
        repeat = self._recorder.record(lambda: self._network.hidden(static, self._pool))
        self._records[kind] = Record(batch=static, repeat=repeat)
        del self._num_seen[kind]
        return self._records[kind]

    def _open(self, kind: Kind, batch: PackedBatch) -> PackedBatch:
        """A batch of this kind, not filled in."""
        assert batch.ragged is not None, "passes by groups have no kind"
        empty_N = torch.empty_like(self._zeros_N[: kind.num_rows])
        return PackedBatch(
            tokens_N=empty_N,
            positions_N=torch.empty_like(empty_N),
            slots_N=torch.empty_like(empty_N),
            groups=(),
            ragged=replace(
                batch.ragged,
                requests_R5=empty_N.new_empty(kind.num_rows + 1, 5),
                visible_M=empty_N.new_empty(kind.num_rows**2, dtype=torch.bool),
                window_positions_N=torch.empty_like(empty_N),
                most_rows=1 if kind.single else kind.num_rows,
                most_keys=kind.num_keys,
            ),
            num_layers=kind.num_layers,
            taps=dict.fromkeys(kind.taps),
            canvas_N=empty_N.bool() if kind.has_canvas else None,
            noise_N=empty_N.float() if kind.has_noise else None,
        )

    def _fill(self, static: PackedBatch, batch: PackedBatch) -> None:
        """Copy a pass into a record's tensors, and padding behind it."""
        rows, source = static.ragged, batch.ragged
        assert rows is not None and source is not None, "passes by groups have no kind"
        num_rows, num_padded = len(batch.tokens_N), len(static.tokens_N)
        rest = slice(num_rows, num_padded)
        for target_N, source_N, padding_N in (
            (static.tokens_N, batch.tokens_N, self._zeros_N),
            (static.positions_N, batch.positions_N, self._zeros_N),
            (static.slots_N, batch.slots_N, self._slots_N),
            (rows.window_positions_N, source.window_positions_N, self._zeros_N),
            (static.canvas_N, batch.canvas_N, self._zeros_N.bool()),
            (static.noise_N, batch.noise_N, self._zeros_N.float()),
        ):
            if target_N is not None and source_N is not None:
                torch.cat((source_N, padding_N[rest]), out=target_N)
        num_told = min(len(source.visible_M), len(rows.visible_M))
        rows.visible_M[:num_told] = source.visible_M[:num_told]
        # All rows belong to somebody: first the padding's, then requests that have none.
        others = [(num_rows, num_padded - num_rows, 0, 0, -1)]
        others += [(num_padded, 0, 0, 0, -1)] * (num_padded - len(source.requests_R5))
        padding_R5 = torch.tensor(others, device=rows.requests_R5.device)
        torch.cat((source.requests_R5, padding_R5), out=rows.requests_R5)


def _kind(batch: PackedBatch) -> Kind | None:
    """Of which kind a pass is; None: of none that is repeated."""
    rows, num_rows = batch.ragged, len(batch.tokens_N)
    if rows is None or num_rows > ROWS[-1] or batch.conditioning or batch.mixture is not None:
        return None
    return Kind(
        num_rows=next(size for size in ROWS if size >= num_rows),
        num_keys=max(LEAST_KEYS, 1 << (rows.most_keys - 1).bit_length()),
        single=rows.most_rows == 1,
        num_layers=batch.num_layers,
        taps=tuple(batch.taps),
        has_canvas=batch.canvas_N is not None,
        has_noise=batch.noise_N is not None,
        table=(rows.pages_TP.data_ptr(), *rows.pages_TP.shape),
    )
