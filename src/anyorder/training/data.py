"""Prepared data: documents tokenised once (see token_store) and packed into sequences.

How they are packed (length, seed, shares, validation) is decided when they are opened; only a
change of files, of their fields or of the tokenizer has them tokenised again.

Documents follow each other in an order fixed by the seed and are cut into sequences of `length`
wherever that falls; a document goes on in the next sequence as if it were another one. So only the
last sequence has padding. Not done: packing that avoids cuts.

Shape suffixes: B sequences, T tokens each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anyorder.core.errors import UserError
from anyorder.core.objective import TrainingBatch
from anyorder.model.tokenizer import Tokenizer
from anyorder.training.documents import Document, Encoder, Part, Split
from anyorder.training.readers import Source, read, read_pairs
from anyorder.training.token_store import (
    Progress,
    SourceStatistics,
    TokenStore,
    key_of,
    open_store,
)

Integers = npt.NDArray[np.int64]
_DOCUMENTS, _PART, _EPOCH = range(3)
"""What a seed is used for; streams of different use have nothing to do with each other."""


@dataclass(frozen=True, kw_only=True)
class DataStatistics:
    """What an epoch holds."""

    num_documents: int
    """With repetitions, where a stated share makes a source come round more than once."""
    num_tokens: int
    num_sequences: int
    padding: float
    """Share of all places that are padding."""
    shares: tuple[float, ...]
    """Of the tokens, by source."""
    sources: tuple[SourceStatistics, ...]
    """Each source as a whole, training and validation together."""


class PackedDataset:
    """Sequences of equal length. What `batch` returns depends on its arguments alone."""

    def __init__(
        self, stores: Sequence[TokenStore], entries: Sequence[Integers], *, length: int, seed: int
    ) -> None:
        """`entries`: which documents of each store an epoch has, repetitions included."""
        self.length = length
        self._stores = tuple(stores)
        self._seed = seed
        sources = np.repeat(np.arange(len(stores)), [len(chosen) for chosen in entries])
        documents = np.concatenate(entries)
        starts = [store.starts[chosen] for store, chosen in zip(stores, entries, strict=True)]
        ends = [store.starts[chosen + 1] for store, chosen in zip(stores, entries, strict=True)]
        mixed = in_order(len(documents), seed)
        self._sources: Integers = sources[mixed]
        self._starts: Integers = np.concatenate(starts)[mixed]
        sizes = np.concatenate(ends)[mixed] - self._starts
        self._places: Integers = np.concatenate([[0], np.cumsum(sizes)])
        """Where each document starts in the stream of all, and at last the stream's end."""
        num_tokens = int(self._places[-1])
        self.num_sequences = -(-num_tokens // length)
        counts = np.bincount(self._sources, weights=sizes, minlength=len(stores))
        self.statistics = DataStatistics(
            num_documents=len(documents),
            num_tokens=num_tokens,
            num_sequences=self.num_sequences,
            padding=1 - num_tokens / (self.num_sequences * length),
            shares=tuple(float(count) / num_tokens for count in counts),
            sources=tuple(store.statistics for store in stores),
        )

    def batch(
        self, step: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> TrainingBatch:
        """The sequences of a step (from 0), or a rank's share of them, in the order of ranks.

        Epochs follow each other without a gap; each has its own order of the sequences.
        """
        share = shared(step, batch_size, rank, world_size)
        indices = (nth_row(place, self.num_sequences, self._seed) for place in share)
        rows = [self._row(index) for index in indices]
        tokens_BT, documents_BT, targets_BT = (
            torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True)
        )
        return TrainingBatch(tokens_BT=tokens_BT, documents_BT=documents_BT, targets_BT=targets_BT)

    def _row(self, index: int) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
        """Tokens, documents and targets [T] of a sequence."""
        tokens = np.zeros(self.length, np.int64)
        documents = np.full(self.length, -1, np.int64)
        targets = np.zeros(self.length, np.bool_)
        start = index * self.length
        end = min(start + self.length, int(self._places[-1]))
        first = int(np.searchsorted(self._places, start, side="right")) - 1
        last = int(np.searchsorted(self._places, end, side="left"))
        for entry in range(first, last):
            begin, stop = max(start, self._places[entry]), min(end, self._places[entry + 1])
            row = slice(begin - start, stop - start)
            offset = self._starts[entry] - self._places[entry]
            store = self._stores[self._sources[entry]]
            tokens[row] = store.tokens[begin + offset : stop + offset]
            targets[row] = store.targets[begin + offset : stop + offset]
            documents[row] = entry - first
        return tokens, documents, targets


def prepare(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    length: int,
    seed: int = 0,
    validation: float = 0.0,
    test: float = 0.0,
    part: Part = "train",
    progress: Progress | None = None,
) -> PackedDataset:
    """Sequences of the sources' documents; `folder` keeps their tokens for the next time.

    `validation` and `test` are shares of the documents kept apart, by a hash of their text: the
    same ones for every seed, and equal documents on the same side. `part` says which is wanted.
    """
    split = Split(validation=validation, test=test)
    check_sources(sources, split)
    if length < 2:
        raise UserError(f"length must be at least 2, got {length}.")
    encoder = Encoder.of(tokenizer)
    stores = [
        open_store(source, encoder, Path(folder), progress or (lambda stage, done, total: None))
        for source in sources
    ]
    sizes = [np.diff(store.starts) for store in stores]
    usable = [split.holds(part, store.keys) for store in stores]
    chosen = choose(sources, sizes, usable, split=split, part=part, seed=seed)
    return PackedDataset(stores, chosen, length=length, seed=seed)


def held_out(
    source: Source, part: Part, *, validation: float, test: float = 0.0, pairs: bool = False
) -> Iterator[Document]:
    """A part's documents as they are read, for evaluations; bad lines are passed over."""
    split = Split(validation=validation, test=test)
    read_any = read_pairs if pairs else read
    for document in read_any(dataclasses.replace(source, on_error="skip"), _pass_over):
        if split.holds(part, np.array([key_of(document, source)], np.uint64))[0]:
            yield document


def _pass_over(message: str) -> None:
    """Whoever prepared the data has reported it."""


# ------------------------------------------------------------------------------ what, how often
def check_sources(sources: Sequence[Source], split: Split) -> None:
    """Raise UserError unless there are some, and all agree on whether they have weights."""
    if not sources:
        raise UserError("there is no data: name at least one source.")
    if not split.validation and any(source.hold_out for source in sources):
        raise UserError("hold_out does nothing at validation 0; give any share above it.")
    weights = [source.weight for source in sources]
    if None in weights and any(weight is not None for weight in weights):
        raise UserError("give every data source a weight, or none of them.")


def choose(
    sources: Sequence[Source],
    sizes: Sequence[Integers],
    usable: Sequence[npt.NDArray[np.bool_]],
    *,
    split: Split,
    part: Part,
    seed: int,
) -> list[Integers]:
    """Which documents of each source an epoch has, repetitions included, given the tokens of each
    document and which ones may be taken."""
    chosen = [np.flatnonzero(flags) for flags in usable]
    for source, documents in zip(sources, chosen, strict=True):
        if len(documents) == 0:
            share = split.test if part == "test" else split.validation
            name = "test" if part == "test" else "validation"
            raise UserError(
                f"none of {source.name}'s documents is for {part}; change {name}, which is "
                f"{share}, or give more documents."
            )
    shares = [source.weight for source in sources if source.weight is not None]
    if not shares:
        return chosen
    kept = [size[documents] for size, documents in zip(sizes, chosen, strict=True)]
    return _mixed(kept, chosen, np.array(shares), seed)


def _mixed(
    sizes: Sequence[Integers],
    chosen: Sequence[Integers],
    weights: npt.NDArray[np.float64],
    seed: int,
) -> list[Integers]:
    """Documents in numbers that give each source its share of the tokens.

    The source that lasts longest occurs once, so that every document is seen; the others come
    round again, as often as needed, the last time with some of their documents.
    """
    totals = np.array([size.sum() for size in sizes])
    rounds = weights / totals / (weights / totals).min()
    entries = []
    for number, (documents, size) in enumerate(zip(chosen, sizes, strict=True)):
        whole = int(rounds[number])
        some = shuffled(len(documents), seed, _PART, number)
        wanted = (rounds[number] - whole) * totals[number]
        # A document belongs to the last round if its middle lies before the end of the share.
        some = some[np.cumsum(size[some]) - size[some] / 2 < wanted]
        entries.append(np.concatenate([np.tile(documents, whole), documents[np.sort(some)]]))
    return entries


# ------------------------------------------------------------------------------------------ order
def shared(step: int, batch_size: int, rank: int, world_size: int) -> range:
    """Places, in the sequence of all epochs, of a rank's share of a step."""
    if batch_size % world_size:
        raise UserError(
            f"a batch of {batch_size} sequences cannot be shared by {world_size} processes; "
            "make it a multiple."
        )
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return range(first, first + share)


def nth_row(place: int, num_rows: int, seed: int) -> int:
    """Which row lies at a place; each epoch has its own order of them."""
    epoch, place = divmod(place, num_rows)
    return int(shuffled(num_rows, seed, _EPOCH, epoch)[place])


def in_order(count: int, seed: int) -> Integers:
    """The order in which documents follow each other, before they are packed into rows."""
    return shuffled(count, seed, _DOCUMENTS)


@functools.lru_cache(maxsize=4)
def shuffled(count: int, *key: int) -> Integers:
    """A permutation of range(count) that is a function of the key, on every machine and with every
    version of numpy: the order of hashes (splitmix64; Steele, Lea and Flood, 2014)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state + np.uint64(part % 2**64))
    hashes = _mix(state + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
    return np.argsort(hashes, kind="stable")


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = value + _STEP  # arrays of integers wrap around, as is meant
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
