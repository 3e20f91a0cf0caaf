"""Pages of an encoder: sequences whose tokens all depend on each other.

They are run in one piece, and shared as wholes or not at all: a page's key hashes the whole text.
What the pages hold is the model's business: the keys and values that a decoder reads.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as Seq

from anyorder.cache.prefix import page_keys
from anyorder.cache.store import PagedStore
from anyorder.core.attention import BIDIRECTIONAL, Attention, Bidirectional
from anyorder.core.sequence import Sequence

_PADDING = -1
"""Fills the last page of a text for its key; no token has this id."""


class WholeStore(PagedStore):
    """A `PagedStore` that shares whole texts, the last and partial page included."""

    def keys(
        self, tokens: Seq[int], salt: str, attention: Attention = BIDIRECTIONAL
    ) -> list[bytes]:
        """Content keys of all pages of `tokens`, which always run both ways."""
        digest = hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16).hexdigest()
        padded = [*tokens, *[_PADDING] * (-len(tokens) % self.page_size)]
        return page_keys(padded, self.page_size, salt=f"{self.role}\0{salt}\0{digest}")

    def attach(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        keys: Seq[bytes],
        limit: int,
        attention: Attention = BIDIRECTIONAL,
    ) -> int:
        """Give the sequence the pages of its text, if all of them are known and within `limit`."""
        known = self.prefixes.match(keys)
        if len(known) < len(keys) or limit < len(tokens):
            return super().attach(sequence, tokens, (), 0)
        super().attach(sequence, tokens, keys, len(keys) * self.page_size)
        sequence.num_resident = len(tokens)
        return len(tokens)

    def publish(self, sequence: Sequence, end: int) -> None:
        """Offer a text that was run in one piece, both ways, for sharing; any other is not."""
        if sequence.page_keys or sequence.num_resident < sequence.length or not sequence.spans:
            return
        (first, *others) = sequence.spans
        whole = first.start == 0 and first.length == first.num_kept == sequence.length
        if others or not whole or not isinstance(first.attention, Bidirectional):
            return
        sequence.page_keys = self.keys(sequence.tokens, sequence.salt)
        for key, page in zip(sequence.page_keys, sequence.pages, strict=True):
            if self.prefixes.add(key, page):
                self.allocator.retain(page)
