"""Texts as batches to measure likelihoods on: cut into windows, every token asked for once.

A document longer than a window goes on in the next one, whose first token is the last token of the
one before: given there, as it was asked for already. So the chain rule and the bounds of diffusion
models are over the same tokens, all but the first of a document that has no prompt. Context from
before the window is not seen; a longer `length` gives more. Windows share rows of a batch, where
they do not see each other.

Pairs are never cut: each is a row, padded to the longest of its batch.

Shape suffixes: B rows, T tokens and S source tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch

from anyorder.core.objective import TrainingBatch


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """A document as tokens."""

    tokens: Seq[int]
    targets: Seq[bool]
    """Which tokens are asked for; the first one never is."""
    text: str
    """What the targets spell."""


@dataclass(frozen=True, kw_only=True)
class HeldOutPair:
    """A target and what an encoder reads before it."""

    source: Seq[int]
    target: HeldOutText


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much text it is, whatever the tokens."""

    num_tokens: int
    """That are asked for."""
    num_words: int
    """Between white space."""
    num_bytes: int
    """In UTF-8."""


def sizes(texts: Seq[HeldOutText]) -> Sizes:
    """Of the targets of all texts."""
    return Sizes(
        num_tokens=sum(sum(text.targets[1:]) for text in texts),
        num_words=sum(len(text.text.split()) for text in texts),
        num_bytes=sum(len(text.text.encode()) for text in texts),
    )


def windows(
    texts: Seq[HeldOutText],
    *,
    length: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> list[TrainingBatch]:
    """Batches of at most `batch_size` rows of `length` tokens with everything that is asked for."""
    rows: list[list[tuple[Seq[int], Seq[bool]]]] = []
    room = 0
    for text in texts:
        for start in range(0, max(len(text.tokens) - 1, 1), length - 1):
            tokens = text.tokens[start : start + length]
            targets = [False, *text.targets[start + 1 : start + length]]
            if not any(targets):
                continue
            if len(tokens) > room:
                rows.append([])
                room = length
            rows[-1].append((tokens, targets))
            room -= len(tokens)
    return [
        _batch(rows[first : first + batch_size], length, torch.device(device))
        for first in range(0, len(rows), batch_size)
    ]


def pair_batches(
    pairs: Seq[HeldOutPair], *, batch_size: int, device: torch.device | str = "cpu"
) -> list[TrainingBatch]:
    """Batches of at most `batch_size` pairs."""
    found = []
    for first in range(0, len(pairs), batch_size):
        some = pairs[first : first + batch_size]
        targets = [[(pair.target.tokens, [False, *pair.target.targets[1:]])] for pair in some]
        sources = [[(pair.source, [False] * len(pair.source))] for pair in some]
        longest = max(len(pair.target.tokens) for pair in some)
        longest_source = max(len(pair.source) for pair in some)
        read = _batch(sources, longest_source, torch.device(device))
        found.append(
            replace(
                _batch(targets, longest, torch.device(device)),
                sources_BS=read.tokens_BT,
                source_documents_BS=read.documents_BT,
            )
        )
    return found


def _batch(
    rows: Seq[Seq[tuple[Seq[int], Seq[bool]]]], length: int, device: torch.device
) -> TrainingBatch:
    tokens_BT = torch.zeros(len(rows), length, dtype=torch.int64)
    documents_BT = torch.full((len(rows), length), -1)
    targets_BT = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, pieces in enumerate(rows):
        start = 0
        for number, (tokens, targets) in enumerate(pieces):
            place = slice(start, start + len(tokens))
            tokens_BT[row, place] = torch.tensor(tokens)
            documents_BT[row, place] = number
            targets_BT[row, place] = torch.tensor(targets)
            start += len(tokens)
    return TrainingBatch(
        tokens_BT=tokens_BT.to(device),
        documents_BT=documents_BT.to(device),
        targets_BT=targets_BT.to(device),
    )
