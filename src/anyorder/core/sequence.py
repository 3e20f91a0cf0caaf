"""Handle to one cached sequence of tokens: what a method holds instead of a KV cache.

A sequence knows which tokens its cache stands for and how they were run, so that the engine can
drop the keys and values at any moment and compute them again (preemption) without the method
noticing.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from anyorder.core.attention import Attention


class SequenceStore(Protocol):
    """Who owns the pages behind the sequences."""

    def discard(self, sequence: Sequence, start: int) -> None:
        """Forget the sequence's tokens at `start` and after."""

    def bind(self, sequence: Sequence, memory: Sequence) -> None:
        """Let an empty sequence cross-attend to an encoder's."""

    def fork(self, parent: Sequence) -> Sequence:
        """A new sequence that shares everything `parent` has cached now."""

    def keep(self, sequence: Sequence, start: int, offsets: Seq[int]) -> None:
        """Of the tokens at `start` and after, keep those at these offsets, side by side."""

    def release(self, sequence: Sequence) -> None:
        """Give back the sequence's pages. Idempotent."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Tokens that were run together under an attention other than causal.

    A later `start` may cut into a span. The kept keys and values depended on the whole of it, so it
    remembers what was cut off, for an exact replay.
    """

    start: int
    attention: Attention
    num_kept: int
    """Its first tokens, which are still part of the sequence."""
    cut: tuple[int, ...] = ()
    """The others, which are not."""

    @property
    def end(self) -> int:
        """Position after the last token that is part of the sequence."""
        return self.start + self.num_kept

    @property
    def length(self) -> int:
        """How many tokens were run together."""
        return self.num_kept + len(self.cut)


class Sequence:
    """Tokens at positions 0..length-1 whose keys and values are cached, for one model role.

    Use it as a context manager; leaving the block frees its pages.
    """

    __slots__ = (
        "conditions",
        "family",
        "memory",
        "num_resident",
        "page_keys",
        "pages",
        "role",
        "row",
        "salt",
        "shallow_from",
        "spans",
        "store",
        "tokens",
    )

    def __init__(
        self,
        *,
        store: SequenceStore,
        role: str = "target",
        salt: str = "",
        family: dict[Sequence, None] | None = None,
    ) -> None:
        self.store = store
        self.role = role
        self.salt = salt
        """Prefixes are shared only among sequences of equal salt."""
        self.family = {} if family is None else family
        """The open sequences of one request, forks included, in order of opening."""
        self.family[self] = None
        self.tokens: list[int] = []
        self.spans: list[Span] = []
        """Non-causal chunks by rising start; whatever lies between them was run causally."""
        self.conditions: list[tuple[int, torch.Tensor]] = []
        """What stretches of tokens were conditioned on, by the position of their first token."""
        self.memory: Sequence | None = None
        """The encoder's sequence that its tokens cross-attend to; forks have the same one."""
        self.shallow_from: int | None = None
        """From here on only lower layers are cached (early exit)."""
        self.pages: list[int] = []
        self.row: int | None = None
        """Its row of the store's page table, while it has pages."""
        self.page_keys: list[bytes] = []
        """Content keys of leading pages already offered for sharing."""
        self.num_resident = 0
        """Leading positions whose keys and values are in pages now; 0 after preemption."""

    @property
    def length(self) -> int:
        """Number of cached positions, resident or to be replayed."""
        return len(self.tokens)

    def fork(self) -> Sequence:
        """A sequence that shares the past and goes its own way from here (copy on write)."""
        return self.store.fork(self)

    def close(self) -> None:
        """Free the pages. Idempotent."""
        self.store.release(self)

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
