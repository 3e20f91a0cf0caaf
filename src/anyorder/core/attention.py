"""Who sees whom: how the new tokens of one request see each other.

A method says it with each `ForwardRequest`; whatever it says, all new tokens see the cached past.
Besides the mask itself a kind knows what the engine may do with it: where it can be split into
passes, and what of it may be kept, shared or run again.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How the new tokens of one request see each other; all of them see the cached past."""

    def visible(self, num_tokens: int) -> torch.Tensor:
        """Bool [num_tokens, num_tokens]: may the row's token see the column's?"""
        raise AssertionError(f"{type(self).__name__} does not define visible()")

    def depths(self, num_tokens: int) -> Seq[int]:
        """Position of every new token relative to the request's start."""
        return range(num_tokens)

    def parents_of(self, num_tokens: int) -> Seq[int]:
        """For kinds in which a token sees a path of earlier ones and itself: the last of them, by
        offset, or -1 for the cached past."""
        raise AssertionError(f"{type(self).__name__} has no paths")

    def settled(self, num_tokens: int) -> int:
        """Of the first `num_tokens` tokens, the longest beginning that sees nothing behind itself,
        and so is the same whatever follows."""
        return 0

    def can_split_at(self, offset: int) -> bool:
        """May the first `offset` tokens run in an earlier pass with the same result?"""
        return 0 < offset == self.settled(offset)

    def is_causal_before(self, offset: int) -> bool:
        """Did the first `offset` tokens run as if causally and alone?"""
        return offset == 0

    def check(self, num_tokens: int) -> None:
        """Assert that the description fits `num_tokens` tokens."""


@dataclass(frozen=True, kw_only=True)
class Causal(Attention):
    """Every token sees those before it and itself."""

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        return torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()

    def parents_of(self, num_tokens: int) -> Seq[int]:
        return range(-1, num_tokens - 1)

    def settled(self, num_tokens: int) -> int:
        return num_tokens

    def is_causal_before(self, offset: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Bidirectional(Attention):
    """Every token sees every other."""

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        return torch.ones(num_tokens, num_tokens, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Canvas(Bidirectional):
    """Every token sees every other, and all see the same of the past: windows are counted from the
    first of them. Networks that condition themselves know these tokens for a noisy canvas."""


@dataclass(frozen=True, kw_only=True)
class Blocks(Attention):
    """Bidirectional inside blocks of `size` tokens, causal between blocks."""

    size: int

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        block = torch.arange(num_tokens) // self.size
        return block[:, None] >= block[None, :]

    def settled(self, num_tokens: int) -> int:
        return num_tokens - num_tokens % self.size


@dataclass(frozen=True, kw_only=True)
class TextThenBlocks(Attention):
    """Causal text, and behind it blocks of `size` tokens that are bidirectional inside."""

    num_text: int
    size: int

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        place = torch.arange(num_tokens)
        block = self.num_text + (place - self.num_text) // self.size
        rank = torch.where(place < self.num_text, place, block)
        return rank[:, None] >= rank[None, :]

    def is_causal_before(self, offset: int) -> bool:
        return offset <= self.num_text


@dataclass(frozen=True, kw_only=True)
class Groups(Attention):
    """Bidirectional inside each group; groups do not see each other. One id per token."""

    ids: tuple[int, ...]

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        group = torch.tensor(self.ids)
        return group[:, None] == group[None, :]

    def check(self, num_tokens: int) -> None:
        assert len(self.ids) == num_tokens, f"{len(self.ids)} group ids for {num_tokens} tokens"


@dataclass(frozen=True, kw_only=True)
class Tree(Attention):
    """Every token sees its ancestors and itself. `parents[i] < i`, or -1 for a root.

    A token's position is its depth, so siblings share one.
    """

    parents: tuple[int, ...]

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        seen = torch.eye(num_tokens, dtype=torch.bool)
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                seen[child] |= seen[parent]
        return seen

    def depths(self, num_tokens: int) -> Seq[int]:
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    def parents_of(self, num_tokens: int) -> Seq[int]:
        return self.parents

    def is_causal_before(self, offset: int) -> bool:
        return self.parents[:offset] == tuple(range(-1, offset - 1))

    def check(self, num_tokens: int) -> None:
        assert len(self.parents) == num_tokens, f"{len(self.parents)} parents, {num_tokens} tokens"
        assert all(-1 <= parent < child for child, parent in enumerate(self.parents)), (
            "a tree's parents come before their children"
        )


@dataclass(frozen=True, kw_only=True)
class Explicit(Attention):
    """Row by row: `mask[i][j]` says whether token i sees token j."""

    mask: tuple[tuple[bool, ...], ...]

    def visible(self, num_tokens: int) -> torch.Tensor:
        import torch

        return torch.tensor(self.mask, dtype=torch.bool)

    def is_causal_before(self, offset: int) -> bool:
        return all(
            sees == (column <= row)
            for row, line in enumerate(self.mask[:offset])
            for column, sees in enumerate(line)
        )

    def check(self, num_tokens: int) -> None:
        assert len(self.mask) == num_tokens and all(len(row) == num_tokens for row in self.mask), (
            f"an explicit mask must be {num_tokens} by {num_tokens}"
        )


CAUSAL = Causal()
BIDIRECTIONAL = Bidirectional()
