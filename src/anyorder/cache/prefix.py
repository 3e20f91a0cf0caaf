"""Prefix cache: full pages of tokens, found again by their content.

A page's key hashes its tokens and the key of the page before it, so equal keys mean equal prefixes
(BLAKE2b, because a collision would show one user's text to another). Role and salt are hashed into
the first key. Tokens that ran in blocks saw those behind them in their block: a page's key hashes
the whole of its last block, and the first key how they ran. The cache holds every page it knows
once; pages that nobody else holds are evicted in order of last use when the allocator runs dry.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq

from anyorder.core.attention import CAUSAL, Attention


def page_keys(
    tokens: Seq[int],
    page_size: int,
    *,
    salt: str,
    known: Seq[bytes] = (),
    attention: Attention = CAUSAL,
) -> list[bytes]:
    """Keys of the full pages of `tokens` whose content does not depend on what follows `tokens`;
    `known` are those of the leading ones."""
    keys = list(known)
    extend_keys(keys, tokens, len(tokens), page_size, salt=salt, attention=attention)
    return keys


def extend_keys(
    keys: list[bytes],
    tokens: Seq[int],
    end: int,
    page_size: int,
    *,
    salt: str,
    attention: Attention = CAUSAL,
) -> None:
    """Append the keys of full pages of `tokens[:end]` that are missing; the work is theirs alone,
    however long the text before them is."""
    if attention != CAUSAL:
        salt += f"\0{attention!r}"
    key = keys[-1] if keys else hashlib.blake2b(salt.encode(), digest_size=16).digest()
    seen = _seen(len(keys) * page_size, attention)
    for page in range(len(keys), attention.settled(end) // page_size):
        start, seen = seen, _seen((page + 1) * page_size, attention)
        content = array("q", tokens[start:seen])
        key = hashlib.blake2b(key + content.tobytes(), digest_size=16).digest()
        keys.append(key)


def _seen(end: int, attention: Attention) -> int:
    """Up to where the tokens before `end` looked."""
    while attention.settled(end) < end:
        end += 1
    return end


class PrefixCache:
    """Key -> page. The owner of the pages retains, releases and evicts."""

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Pages that only the cache holds, least recently used first."""

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def num_idle(self) -> int:
        """Pages that could be evicted now."""
        return len(self._idle)

    def match(self, keys: Seq[bytes]) -> list[int]:
        """Pages of the longest known prefix of `keys`."""
        pages: list[int] = []
        for key in keys:
            page = self._pages.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def add(self, key: bytes, page: int) -> bool:
        """Learn a page; False if the key or the page is known already."""
        if key in self._pages or page in self._keys:
            return False
        self._pages[key] = page
        self._keys[page] = key
        return True

    def knows(self, page: int) -> bool:
        """Does the cache hold this page?"""
        return page in self._keys

    def mark_used(self, page: int) -> None:
        """Somebody else holds the page now."""
        self._idle.pop(page, None)

    def mark_idle(self, page: int) -> None:
        """Nobody else holds the page any more. Called last page first, so that the end of a prefix
        is evicted before its beginning."""
        self._idle[page] = None

    def evict(self) -> int | None:
        """Forget the least recently used idle page and return it; None if there is none."""
        if not self._idle:
            return None
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._keys.pop(page)]
        return page
