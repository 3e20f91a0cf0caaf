"""Sequences and their pages, for one model role: fork, copy on write, prefix sharing, preemption.

Positions are reserved before a pass and become resident with it. A page held by several sequences
(or by the prefix cache) is copied before it is written.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as Seq
from dataclasses import replace

from anyorder.cache.allocator import OutOfPages, PageAllocator
from anyorder.cache.pool import Pool
from anyorder.cache.prefix import PrefixCache, extend_keys, page_keys
from anyorder.cache.table import PageTable
from anyorder.core.attention import CAUSAL, Attention, Causal
from anyorder.core.sequence import Sequence, Span


class PagedStore:
    """Implements `core.sequence.SequenceStore` over a pool."""

    def __init__(self, pool: Pool, *, num_pages: int, role: str = "target") -> None:
        self.pool = pool
        self.page_size = pool.page_size
        self.role = role
        self.allocator = PageAllocator(num_pages)
        self.prefixes = PrefixCache()
        self.table = PageTable(pool.blank, pool.device)

    # ------------------------------------------------------------------------------- bookkeeping
    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return self.allocator.num_pages

    @property
    def num_available(self) -> int:
        """Pages that are free or would be after evicting unused prefixes."""
        return self.allocator.num_free + self.prefixes.num_idle

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-num_tokens // self.page_size)

    # --------------------------------------------------------------------------------- sequences
    def open(self, *, salt: str = "", family: dict[Sequence, None] | None = None) -> Sequence:
        """A new, empty sequence; prefixes are shared among equal salts."""
        return Sequence(store=self, role=self.role, salt=salt, family=family)

    def fork(self, parent: Sequence) -> Sequence:
        """A sequence that shares everything `parent` has cached now."""
        child = self.open(salt=parent.salt, family=parent.family)
        child.tokens = list(parent.tokens)
        child.spans = list(parent.spans)
        child.conditions = list(parent.conditions)
        child.memory = parent.memory
        child.shallow_from = parent.shallow_from
        child.page_keys = list(parent.page_keys)
        child.num_resident = parent.num_resident
        for page in parent.pages[: self.pages_for(parent.num_resident)]:
            self._retain(page)
            self._append(child, page)
        return child

    def remember(self, sequence: Sequence, tokens: Seq[int], attention: Attention) -> None:
        """Let an empty sequence stand for tokens that are still to be run, as after preemption."""
        assert not sequence.length, "only an empty sequence may be given its tokens"
        sequence.tokens = list(tokens)
        if not isinstance(attention, Causal):
            sequence.spans = [Span(start=0, attention=attention, num_kept=len(tokens))]

    def bind(self, sequence: Sequence, memory: Sequence) -> None:
        """Let an empty sequence cross-attend to an encoder's."""
        assert not sequence.length, "what is cached already read something else"
        sequence.memory = memory
        # Prefixes are shared only among sequences that read the same.
        source = array("q", memory.tokens).tobytes()
        digest = hashlib.blake2b(source, digest_size=16).hexdigest()
        sequence.salt = f"{memory.salt}\0{digest}"

    def release(self, sequence: Sequence) -> None:
        """Give back the sequence's pages and forget its tokens. Idempotent."""
        self.drop(sequence)
        sequence.family.pop(sequence, None)
        sequence.tokens.clear()
        sequence.spans.clear()
        sequence.conditions.clear()
        sequence.page_keys.clear()

    def drop(self, sequence: Sequence) -> None:
        """Give back the pages but remember the tokens, to be replayed (preemption)."""
        for page in reversed(sequence.pages):
            self._release(page)
        if sequence.row is not None:
            self.table.close(sequence.row, len(sequence.pages))
        sequence.row = None
        sequence.pages.clear()
        sequence.num_resident = 0

    def discard(self, sequence: Sequence, start: int) -> None:
        """Forget the tokens at `start` and after."""
        assert start <= sequence.length, (
            f"a request may not leave a hole in the cache: start {start}, length {sequence.length}"
        )
        del sequence.page_keys[beginning(sequence)[0].settled(start) // self.page_size :]
        while sequence.spans and sequence.spans[-1].start >= start:
            sequence.spans.pop()
        if sequence.spans:
            span = sequence.spans[-1]
            kept = start - span.start
            if kept < span.length and span.attention.is_causal_before(kept):
                sequence.spans.pop()
            elif kept < span.num_kept:
                alone = span.attention.can_split_at(kept)  # what was behind did not matter
                cut = () if alone else (*sequence.tokens[start : span.end], *span.cut)
                sequence.spans[-1] = replace(span, num_kept=kept, cut=cut)
        del sequence.tokens[start:]
        while sequence.conditions and sequence.conditions[-1][0] >= start:
            sequence.conditions.pop()
        if sequence.conditions:
            position, conditioning = sequence.conditions[-1]
            sequence.conditions[-1] = position, conditioning[: start - position]
        if sequence.shallow_from is not None and sequence.shallow_from >= start:
            sequence.shallow_from = None
        sequence.num_resident = min(sequence.num_resident, start)
        needed = self.pages_for(sequence.num_resident)
        while len(sequence.pages) > needed:
            self._release(sequence.pages.pop())
            assert sequence.row is not None, "what has pages has a row"
            self.table.clear(sequence.row, len(sequence.pages))

    # ------------------------------------------------------------------------------------ a pass
    def reserve(self, sequence: Sequence, end: int) -> None:
        """Make positions num_resident .. end-1 writable; OutOfPages leaves the sequence usable."""
        start = sequence.num_resident
        first = start // self.page_size
        if first < len(sequence.pages) and self.allocator.holders(sequence.pages[first]) > 1:
            shared = sequence.pages[first]
            own = self._allocate()
            if start % self.page_size:
                self.pool.copy_page(shared, own)
            sequence.pages[first] = own
            assert sequence.row is not None, "what has pages has a row"
            self.table.put(sequence.row, first, own)
            self._release(shared)
        while len(sequence.pages) < self.pages_for(end):
            self._append(sequence, self._allocate())
            if len(sequence.pages) * self.page_size > end:
                self.pool.clear_page(sequence.pages[-1])

    def slots(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Pool slots of positions start .. end-1."""
        size, pages = self.page_size, sequence.pages
        return [pages[p // size] * size + p % size for p in range(start, end)]

    def commit(self, sequence: Sequence, tokens: Seq[int], attention: Attention) -> None:
        """The tokens after num_resident have been run; remember them if they are new."""
        start = sequence.num_resident
        if start == sequence.length:
            if not isinstance(attention, Causal):
                self._add_span(sequence, len(tokens), attention)
            sequence.tokens.extend(tokens)
        # A replayed span may reach beyond what was kept of it, and others may follow there.
        ends = [span.end for span in sequence.spans if span.start <= start < span.end]
        sequence.num_resident = min([start + len(tokens), *ends])

    def _add_span(self, sequence: Sequence, num_tokens: int, attention: Attention) -> None:
        """Remember how tokens at the sequence's end were run; with those before, where that comes
        to the same."""
        start, spans = sequence.length, sequence.spans
        if spans and spans[-1].end == start and spans[-1].attention == attention:
            last = spans[-1]
            if not last.cut and attention.can_split_at(last.num_kept):
                start, num_tokens = last.start, spans.pop().num_kept + num_tokens
        spans.append(Span(start=start, attention=attention, num_kept=num_tokens))

    def keep(self, sequence: Sequence, start: int, offsets: Seq[int]) -> None:
        """Of the tokens at `start` and after, keep those at these rising offsets, side by side.

        They must have been run so that each saw the past and the kept ones before it, at the
        positions they move to: what was kept is then what a causal run would have cached.
        """
        tokens = [sequence.tokens[start + offset] for offset in offsets]
        end = start + len(tokens)
        if sequence.num_resident == sequence.length:
            moved = [(o, new) for new, o in enumerate(offsets) if o != new]
            if moved:
                slots = self.slots(sequence, start, sequence.length)
                self.pool.move([slots[o] for o, _ in moved], [slots[new] for _, new in moved])
        else:  # preempted meanwhile; what it has lost is replayed anyway
            sequence.num_resident = min(sequence.num_resident, start)
        while sequence.spans and sequence.spans[-1].start >= start:
            sequence.spans.pop()
        sequence.tokens[start:end] = tokens
        self.discard(sequence, end)

    # -------------------------------------------------------------------------- prefix sharing
    def keys(self, tokens: Seq[int], salt: str, attention: Attention = CAUSAL) -> list[bytes]:
        """Content keys of the full pages of `tokens`, run like that."""
        return page_keys(tokens, self.page_size, salt=f"{self.role}\0{salt}", attention=attention)

    def attach(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        keys: Seq[bytes],
        limit: int,
        attention: Attention = CAUSAL,
    ) -> int:
        """Let an empty sequence start with cached pages of `tokens`, at most `limit` positions.

        Returns the number of positions that need not be run.
        """
        pages = self.prefixes.match(keys[: limit // self.page_size])
        # The rest of the last page is run anew where its tokens' block goes on behind it.
        num_tokens = attention.settled(len(pages) * self.page_size)
        pages = pages[: self.pages_for(num_tokens)]
        for page in pages:
            self._retain(page)
        # What the sequence held is released second, so that shared pages are never idle between.
        self.drop(sequence)
        for page in pages:
            self._append(sequence, page)
        sequence.num_resident = num_tokens
        sequence.page_keys = list(keys[: num_tokens // self.page_size])
        if num_tokens and not sequence.length:
            self.remember(sequence, tokens[:num_tokens], attention)
        return num_tokens

    def publish(self, sequence: Sequence, end: int) -> None:
        """Offer full pages before position `end` for sharing; only those that do not depend on what
        follows are."""
        attention, num_tokens = beginning(sequence)
        end = min(end, num_tokens)
        if sequence.shallow_from is not None:
            end = min(end, sequence.shallow_from)
        if sequence.conditions:
            return  # the same tokens may be conditioned on something else another time
        end = attention.settled(min(end, sequence.num_resident))
        num_pages, known = end // self.page_size, len(sequence.page_keys)
        if num_pages <= known:
            return
        extend_keys(
            sequence.page_keys,
            sequence.tokens,
            end,
            self.page_size,
            salt=f"{self.role}\0{sequence.salt}",
            attention=attention,
        )
        for index in range(known, num_pages):
            if self.prefixes.add(sequence.page_keys[index], sequence.pages[index]):
                self.allocator.retain(sequence.pages[index])

    # ------------------------------------------------------------------------------------- pages
    def _allocate(self) -> int:
        if not self.allocator.num_free:
            evicted = self.prefixes.evict()
            if evicted is None:
                raise OutOfPages
            self.allocator.release(evicted)
        return self.allocator.allocate()

    def _append(self, sequence: Sequence, page: int) -> None:
        if sequence.row is None:
            sequence.row = self.table.open()
        self.table.put(sequence.row, len(sequence.pages), page)
        sequence.pages.append(page)

    def _retain(self, page: int) -> None:
        self.allocator.retain(page)
        self.prefixes.mark_used(page)

    def _release(self, page: int) -> None:
        if self.allocator.release(page) == 1 and self.prefixes.knows(page):
            self.prefixes.mark_idle(page)


def beginning(sequence: Sequence) -> tuple[Attention, int]:
    """How a sequence's first tokens were run, and how many of them were run like that."""
    if not sequence.spans:
        return CAUSAL, sequence.length
    first = sequence.spans[0]
    return (CAUSAL, first.start) if first.start else (first.attention, first.num_kept)
