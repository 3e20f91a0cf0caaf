"""Parallel pairs, packed into rows of a source side and a target side for an encoder-decoder.

A row holds several pairs, each whole: nothing is cut. Pairs are taken in an order fixed by the seed
and each goes into the first of a few open rows that has room for both of its sides. A pair that is
too long for an empty row stops the preparation, or is counted and left out, as its source's
`on_error` says. Pairs with the same source text are all learnt from or all held out.

Shape suffixes: B rows, T target tokens and S source tokens each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anyorder.core.errors import UserError
from anyorder.core.objective import TrainingBatch
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.data import (
    DataStatistics,
    check_sources,
    choose,
    in_order,
    nth_row,
    shared,
)
from anyorder.training.documents import PairEncoder, Part, Split
from anyorder.training.readers import Source
from anyorder.training.token_store import Progress, SourceStatistics, TokenStore, open_store

Integers = npt.NDArray[np.int64]

_OPEN_ROWS = 64
"""Rows that are being filled at a time: more pack tighter and take longer."""


class PairDataset:
    """Rows of equal length. What `batch` returns depends on its arguments alone."""

    def __init__(
        self,
        stores: Sequence[TokenStore],
        entries: Sequence[Integers],
        statistics: Sequence[SourceStatistics],
        *,
        length: int,
        source_length: int,
        seed: int,
    ) -> None:
        """`entries`: which pairs of each store an epoch has; all of them fit into a row."""
        self.length = length
        self.source_length = source_length
        self._stores = tuple(stores)
        self._seed = seed
        origins = np.repeat(np.arange(len(stores)), [len(chosen) for chosen in entries])
        order = in_order(len(origins), seed)
        self._origins: Integers = origins[order]
        self._pairs: Integers = np.concatenate(entries)[order]
        sizes = [_sizes(store)[chosen] for store, chosen in zip(stores, entries, strict=True)]
        sizes_P2 = np.concatenate(sizes)[order]
        self._rows = _pack(sizes_P2, np.array([source_length, length]))
        self.num_sequences = len(self._rows)
        num_tokens = int(sizes_P2.sum())
        counts = np.bincount(self._origins, weights=sizes_P2.sum(axis=1), minlength=len(stores))
        self.statistics = DataStatistics(
            num_documents=len(origins),
            num_tokens=num_tokens,
            num_sequences=self.num_sequences,
            padding=1 - num_tokens / (self.num_sequences * (length + source_length)),
            shares=tuple(float(count) / num_tokens for count in counts),
            sources=tuple(statistics),
        )

    def batch(
        self, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> TrainingBatch:
        """The rows of a step (from 0), or a rank's share of them, in the order of ranks.

        Epochs follow each other without a gap; each has its own order of the rows.
        """
        share = shared(step, batch_size, rank, world_size)
        sources_BS = torch.zeros(len(share), self.source_length, dtype=torch.int64)
        tokens_BT = torch.zeros(len(share), self.length, dtype=torch.int64)
        source_documents_BS = torch.full_like(sources_BS, -1)
        documents_BT = torch.full_like(tokens_BT, -1)
        targets_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, place in enumerate(share):
            source_end = end = 0
            pairs = self._rows[nth_row(place, self.num_sequences, self._seed)]
            for number, entry in enumerate(pairs):
                store = self._stores[self._origins[entry]]
                first, middle, last = store.starts[2 * self._pairs[entry] :][:3]
                source = slice(source_end, source_end := source_end + int(middle - first))
                target = slice(end, end := end + int(last - middle))
                sources_BS[row, source] = _tensor(store.tokens[first:middle])
                tokens_BT[row, target] = _tensor(store.tokens[middle:last])
                targets_BT[row, target] = _tensor(store.targets[middle:last]).bool()
                source_documents_BS[row, source] = number
                documents_BT[row, target] = number
        return TrainingBatch(
            tokens_BT=tokens_BT,
            documents_BT=documents_BT,
            targets_BT=targets_BT,
            sources_BS=sources_BS,
            source_documents_BS=source_documents_BS,
        )


def prepare_pairs(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    length: int,
    source_length: int,
    start: int | None = None,
    seed: int = 0,
    validation: float = 0.0,
    test: float = 0.0,
    part: Part = "train",
    progress: Progress | None = None,
) -> PairDataset:
    """Rows of the sources' pairs; `folder` keeps their tokens for the next time.

    `length` is the target side's, with start and end token. `start`: another start token than the
    tokenizer's, for a model to fine-tune. `validation` and `test` are shares of
    the pairs kept apart, by a hash of their source text; `part` says which is wanted.
    """
    split = Split(validation=validation, test=test)
    check_sources(sources, split)
    progress = progress or (lambda stage, done, total: None)
    encoder = PairEncoder.of(tokenizer, start)
    stores = [open_store(source, encoder, Path(folder), progress) for source in sources]
    limits = np.array([source_length, length])
    sizes = [_sizes(store) for store in stores]
    fitting: list[npt.NDArray[np.bool_]] = [
        np.logical_and.reduce(each <= limits, axis=1) for each in sizes
    ]
    statistics = [
        _without_long(*each, limits) for each in zip(sources, stores, sizes, fitting, strict=True)
    ]
    usable = [
        fits & split.holds(part, store.keys) for fits, store in zip(fitting, stores, strict=True)
    ]
    totals = [each.sum(axis=1) for each in sizes]
    chosen = choose(sources, totals, usable, split=split, part=part, seed=seed)
    return PairDataset(
        stores, chosen, statistics, length=length, source_length=source_length, seed=seed
    )


def _sizes(store: TokenStore) -> Integers:
    """Tokens [pairs, 2] of each pair's source and target."""
    return np.diff(store.starts).reshape(-1, 2)


def _without_long(
    source: Source,
    store: TokenStore,
    sizes_P2: Integers,
    fits_P: npt.NDArray[np.bool_],
    limits: Integers,
) -> SourceStatistics:
    """The source's statistics with the pairs that are too long among what was skipped. Raises
    UserError instead if it is to stop at bad data."""
    statistics, long = store.statistics, np.flatnonzero(~fits_P)
    if not len(long):
        return statistics
    given, learnt = sizes_P2[long[0]]
    what = (
        f"{source.name}: {len(long)} of {len(fits_P)} pairs are too long for [data] source_length "
        f"{limits[0]} or length {limits[1]}; the first, pair {long[0] + 1}, has {given} source and "
        f"{learnt} target tokens"
    )
    if source.on_error == "stop":
        raise UserError(f"{what}. Raise the lengths, or leave such pairs out: on_error = 'skip'.")
    return dataclasses.replace(
        statistics,
        num_skipped=statistics.num_skipped + len(long),
        problems=(*statistics.problems, what),
    )


def _pack(sizes_P2: Integers, limits: Integers) -> list[list[int]]:
    """Rows of pairs, each pair in the first open row with room for both sides. With too many rows
    open, the oldest is closed."""
    rows: list[list[int]] = []
    room_O2 = np.zeros((0, 2), np.int64)  # of the last rows
    for pair, size in enumerate(sizes_P2):
        fitting = (room_O2 >= size).all(axis=1)
        place = int(fitting.argmax()) if fitting.any() else len(room_O2)
        if place == len(room_O2):
            rows.append([])
            room_O2 = np.concatenate([room_O2, limits[None]])
        rows[len(rows) - len(room_O2) + place].append(pair)
        room_O2[place] -= size
        room_O2 = room_O2[-_OPEN_ROWS:]
    return rows


def _tensor(values: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
