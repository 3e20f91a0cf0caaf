"""A byte automaton as one over tokens: from which state to which, by which tokens.

Moves are kept in two forms. Where few tokens lead from a state to another, they are listed; where
many do (letters inside of strings), they are a bitset over the vocabulary, and equal ones are kept
once. Made when a guide is compiled, for all states; after that nothing walks the vocabulary.

Shape suffixes: S states, M moves, L listed moves, W moves by sets, U different sets, B bytes of a
set, P pairs of states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from anyorder.core.errors import GuideError
from anyorder.sampling.automata.byte_automaton import ByteAutomaton
from anyorder.sampling.automata.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Moves = tuple[int, NDArray[np.int32], NDArray[np.int32]]

_LISTED = 48
"""Most tokens between two states that are listed."""
MAX_SETS = 100_000_000
"""Bytes of all different sets."""
MAX_MOVES = 4_000_000
"""Listed ones, and pairs of states with sets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenAutomaton:
    """What each token does to each state. State 0 is dead and not kept; 1 is the start."""

    accepting_S: NDArray[np.bool]
    size: int
    """Of the vocabulary."""
    sources_L: NDArray[np.int64]
    targets_L: NDArray[np.int64]
    tokens_L: NDArray[np.int64]
    sources_W: NDArray[np.int64]
    targets_W: NDArray[np.int64]
    which_W: NDArray[np.int64]
    """The set of each move by a set."""
    sets_UB: NDArray[np.uint8]
    """Bitsets, lowest bit first."""

    @property
    def num_states(self) -> int:
        """Dead state included."""
        return len(self.accepting_S)

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """[2, P]: states that some token leads between."""
        keys = np.concatenate(
            [
                self.sources_L * self.num_states + self.targets_L,
                self.sources_W * self.num_states + self.targets_W,
            ]
        )
        return np.stack(np.divmod(np.unique(keys), self.num_states))

    @cached_property
    def going_on_S(self) -> NDArray[np.bool]:
        """Does any token lead on from the state?"""
        found_S = np.zeros(self.num_states, bool)
        found_S[self.pairs[0]] = True
        return found_S

    def moves(self, token: int) -> NDArray[np.int64]:
        """[2, P]: from where to where the token leads."""
        listed = self.tokens_L == token
        in_set_U = (self.sets_UB[:, token >> 3] >> (token & 7) & 1).astype(bool)
        by_set = in_set_U[self.which_W]
        return np.stack(
            [
                np.concatenate([self.sources_L[listed], self.sources_W[by_set]]),
                np.concatenate([self.targets_L[listed], self.targets_W[by_set]]),
            ]
        )

    def tokens(self, before_S: NDArray[np.bool], after_S: NDArray[np.bool]) -> NDArray[np.uint8]:
        """The bitset of tokens that lead from one of some states to one of others."""
        allowed_B = np.zeros(self.sets_UB.shape[1], np.uint8)
        by_set = before_S[self.sources_W] & after_S[self.targets_W]
        if by_set.any():
            used = np.unique(self.which_W[by_set])
            allowed_B |= np.bitwise_or.reduce(self.sets_UB[used], axis=0)
        listed = self.tokens_L[before_S[self.sources_L] & after_S[self.targets_L]]
        np.bitwise_or.at(allowed_B, listed >> 3, (1 << (listed & 7)).astype(np.uint8))
        return allowed_B

    def without(self, never: frozenset[int]) -> TokenAutomaton:
        """The same, but for tokens that lead nowhere."""
        never_B = bitset(np.array(sorted(never), np.int64), self.sets_UB.shape[1])
        sets_UB = self.sets_UB & ~never_B
        listed = ~np.isin(self.tokens_L, list(never))
        by_set = (np.bitwise_or.reduce(sets_UB, axis=1) > 0)[self.which_W]
        return TokenAutomaton(
            accepting_S=self.accepting_S,
            size=self.size,
            sources_L=self.sources_L[listed],
            targets_L=self.targets_L[listed],
            tokens_L=self.tokens_L[listed],
            sources_W=self.sources_W[by_set],
            targets_W=self.targets_W[by_set],
            which_W=self.which_W[by_set],
            sets_UB=sets_UB,
        )


def bitset(tokens: NDArray[np.int64] | NDArray[np.int32], num_bytes: int) -> NDArray[np.uint8]:
    """A set of tokens, lowest bit first."""
    bits = np.zeros(num_bytes * 8, np.uint8)
    bits[tokens] = 1
    return np.packbits(bits, bitorder="little")


def token_automaton(automaton: ByteAutomaton, vocabulary: Vocabulary) -> TokenAutomaton:
    """The automaton over tokens; GuideError if it gets too large."""
    num_bytes = -(-vocabulary.size // 8)
    listed: list[NDArray[np.int64]] = []
    pairs: list[tuple[int, int, int]] = []
    numbers: dict[bytes, int] = {}
    num_listed = 0
    for source, targets, tokens in _by_source(automaton, vocabulary):
        starts = np.flatnonzero(np.diff(targets, prepend=-1))
        counts = np.diff(starts, append=len(targets))
        few = np.repeat(counts <= _LISTED, counts)
        own = np.stack([targets[few], tokens[few]]).astype(np.int64)
        listed.append(np.concatenate([np.full((1, own.shape[1]), source), own]))
        num_listed += own.shape[1]
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            if count > _LISTED:
                found = bitset(tokens[start : start + count], num_bytes).tobytes()
                number = numbers.setdefault(found, len(numbers))
                pairs.append((source, int(targets[start]), number))
        if num_listed + len(pairs) > MAX_MOVES or len(numbers) * num_bytes > MAX_SETS:
            raise GuideError(
                "the guide takes too many moves over this vocabulary to guide a canvas; simplify "
                "it (shorter counts, fewer alternatives), or use autoregressive."
            )
    nothing = np.zeros((3, 0), np.int64)
    sources_L, targets_L, tokens_L = np.concatenate([nothing, *listed], axis=1)
    table = np.array(pairs, np.int64).reshape(-1, 3)
    sets = np.frombuffer(b"".join(numbers), np.uint8).reshape(-1, num_bytes)
    return TokenAutomaton(
        accepting_S=automaton.accepting_S,
        size=vocabulary.size,
        sources_L=sources_L,
        targets_L=targets_L,
        tokens_L=tokens_L,
        sources_W=table[:, 0],
        targets_W=table[:, 1],
        which_W=table[:, 2],
        sets_UB=sets,
    )


def _by_source(automaton: ByteAutomaton, vocabulary: Vocabulary) -> Iterator[Moves]:
    """For each state that leads anywhere: (the state, targets, rising, and their tokens)."""
    table = automaton.next_SB.ravel()
    narrow = np.int16 if len(automaton.accepting_S) < 1 << 15 else np.int32
    for source in range(1, len(automaton.accepting_S)):
        reached_N = np.array([source], np.int32)
        targets, tokens = [], []
        for level in vocabulary.levels:
            reached_N = table[(reached_N[level.parents_N] << 8) + level.bytes_N]
            if not reached_N.any():
                break
            ends_T = reached_N[level.nodes_T]
            alive = ends_T.nonzero()[0]
            targets.append(ends_T[alive])
            tokens.append(level.tokens_T[alive])
        if targets:
            found = np.concatenate(targets)
            order = np.argsort(found.astype(narrow), kind="stable")
            yield source, found[order], np.concatenate(tokens)[order]
