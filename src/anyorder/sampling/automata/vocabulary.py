"""The bytes of a tokenizer's tokens, as a tree of their beginnings.

Shape suffixes: N nodes of one depth, T tokens that end there.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """The beginnings of one length."""

    parents_N: NDArray[np.int32]
    """Which of the level before each goes on from."""
    bytes_N: NDArray[np.uint8]
    tokens_T: NDArray[np.int32]
    nodes_T: NDArray[np.int32]
    """Where each token ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """All tokens that are text."""

    levels: tuple[Level, ...]
    size: int
    """Ids are below this."""


def vocabulary(tokens: Seq[bytes]) -> Vocabulary:
    """The tree of tokens by id; those without bytes are left out."""
    longest = max(map(len, tokens), default=0)
    nodes: dict[bytes, int] = {b"": 0}
    levels = []
    for length in range(1, longest + 1):
        parents, letters, ids, ends = list[int](), list[int](), list[int](), list[int]()
        fresh: dict[bytes, int] = {}
        for token, text in enumerate(tokens):
            if len(text) < length:
                continue
            beginning = text[:length]
            if beginning not in fresh:
                fresh[beginning] = len(fresh)
                parents.append(nodes[beginning[:-1]])
                letters.append(beginning[-1])
            if len(text) == length:
                ids.append(token)
                ends.append(fresh[beginning])
        nodes = fresh
        levels.append(
            Level(
                parents_N=np.array(parents, np.int32),
                bytes_N=np.array(letters, np.uint8),
                tokens_T=np.array(ids, np.int32),
                nodes_T=np.array(ends, np.int32),
            )
        )
    return Vocabulary(levels=tuple(levels), size=len(tokens))
