"""Suffix automaton: guess that what followed the longest match follows again, here or elsewhere.

SAM Decoding (arXiv:2411.10666): one automaton grows with this text, another one with what the
engine wrote earlier, and of the two the longer match drafts (SuffixDecoding, arXiv:2411.04975, has
the same idea with a suffix tree; REST, arXiv:2311.08252, with a fixed store). Unlike prompt lookup
it knows the longest match, however long, at constant cost per token: the states are the sets of
places where substrings end (Blumer et al., 1985), and extending by a token is amortised O(1).

Earlier outputs are remembered as `Context.shared` does: among requests of equal salt. Only texts
that are over are added, without their prompts; the oldest are forgotten. No fixed store, no trees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from anyorder.core.drafter import NO_DRAFT, Draft, Drafter, DraftSession, Proposing
from anyorder.core.options import Range

if TYPE_CHECKING:
    import torch

    from anyorder.core.method import Context
    from anyorder.core.sequence import Sequence

_LINKS = 16
"""Shorter matches that learn of a new occurrence. In a text of one token over and over there are
as many as tokens; the rest keeps an older occurrence."""
_REMATCH = 64
"""Tokens looked up anew when the outputs have changed: matches are exact up to this length."""
_SEPARATOR = -1
"""Ends every output; no text has it, so no match crosses it."""


@dataclass(frozen=True, kw_only=True)
class SuffixAutomaton(Drafter):
    """What followed the longest match in this text or in earlier outputs."""

    shortest: Annotated[int, Range(1, 64), "shortest match that is good enough, in tokens"] = 1
    remember: Annotated[
        int, Range(0, 1_000_000), "tokens of earlier outputs to match too; 0: this text alone"
    ] = 32768

    def chance(self, grade: int) -> float:
        return 1 - 0.7 / max(grade // 2, 1)  # as measured for prompt lookup

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        size = self.remember
        outputs = None
        if size:
            outputs = context.shared(f"suffix automaton of {size} tokens", lambda: _Outputs(size))
        return _Lookup(self.shortest, context.prompt, outputs)


class _Automaton:
    """All substrings of a growing list of tokens."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self.next: list[dict[int, int]] = [{}]
        """By state (0 is the empty match): where each token leads."""
        self.link: list[int] = [-1]
        """The state of the longest suffix that ends at more places."""
        self.length: list[int] = [0]
        """Of the longest substring that the state stands for."""
        self.end: list[int] = [0]
        """Position after an occurrence, the latest that is known and that something follows."""
        self._last = 0
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Extend by one token."""
        end, last = len(self.tokens), self._last
        if token != _SEPARATOR:
            # What ends here has a continuation now.
            state = last
            for _ in range(_LINKS):
                if state <= 0:
                    break
                self.end[state] = end
                state = self.link[state]
        self.tokens.append(token)
        new = self._state(self.length[last] + 1, {}, end + 1)
        state = last
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        self.link[new] = self._split(state, token) if state >= 0 else 0
        self._last = new

    @property
    def longest(self) -> tuple[int, int]:
        """Length of the longest end of the list that occurred before, and the position after."""
        state = max(self.link[self._last], 0)
        return self.length[state], self.end[state]

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest match of a text that goes on with `token` after a match of `length`."""
        while state and token not in self.next[state]:
            state = self.link[state]
            length = self.length[state]
        if token in self.next[state]:
            return self.next[state][token], length + 1
        return 0, 0

    def _state(self, length: int, following: dict[int, int], end: int) -> int:
        self.next.append(following)
        self.link.append(-1)
        self.length.append(length)
        self.end.append(end)
        return len(self.next) - 1

    def _split(self, state: int, token: int) -> int:
        """The state of what `state` stands for and `token`, with nothing longer in it."""
        whole = self.next[state][token]
        if self.length[whole] == self.length[state] + 1:
            return whole
        part = self._state(self.length[state] + 1, dict(self.next[whole]), self.end[whole])
        self.link[part] = self.link[whole]
        self.link[whole] = part
        while state >= 0 and self.next[state].get(token) == whole:
            self.next[state][token] = part
            state = self.link[state]
        return part


class _Outputs:
    """What was written earlier. Changes only as a whole, when a text is over."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._texts: deque[Seq[int]] = deque()
        self._num_tokens = 0
        self.automaton = _Automaton()
        self.version = 0
        """Counts changes: states found before the last one mean nothing."""

    def add(self, text: Seq[int]) -> None:
        """Remember a text, at most its end; forget the oldest where there are too many."""
        if len(text) < 2:  # nothing follows anything
            return
        text = text[-self._size :]
        self._texts.append(text)
        self._num_tokens += len(text)
        self.version += 1
        added: Iterable[Seq[int]] = (text,)
        if self._num_tokens > self._size:
            # An automaton cannot forget. Going down to half makes rebuilding rare.
            while self._num_tokens > max(self._size // 2, len(text)):
                self._num_tokens -= len(self._texts.popleft())
            self.automaton, added = _Automaton(), self._texts
        for one in added:
            for token in (*one, _SEPARATOR):
                self.automaton.append(token)


class _Lookup(DraftSession):
    """Matches in this text and, where there are any, in earlier outputs."""

    def __init__(self, shortest: int, prompt: Seq[int], outputs: _Outputs | None) -> None:
        self._shortest = shortest
        self._num_prompt = len(prompt)
        self._own = _Automaton(prompt)
        self._outputs = outputs
        self._version = -1
        self._match = 0, 0
        """State and length of the longest match in the outputs of that version."""

    def expects(self) -> int:
        return self._find()[0]

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        grade, source, start = self._find()
        if grade < 0:
            return NO_DRAFT
        tokens = source.tokens[start : start + limit]
        if source is self._own:
            period = len(source.tokens) - start
            while len(tokens) < limit:  # a repetition is still under way: guess that it goes on
                tokens.append(tokens[len(tokens) - period])
        elif _SEPARATOR in tokens:
            del tokens[tokens.index(_SEPARATOR) :]
        return Draft(tokens=tokens, grade=grade)
        yield  # a generator that asks for no passes

    def observe(
        self,
        text: Seq[int],
        *,
        features: torch.Tensor | None,
        heads: Seq[Seq[tuple[int, float]]],
    ) -> None:
        new = text[len(self._own.tokens) :]
        for token in new:
            self._own.append(token)
        if self._outputs is None:
            return
        if self._version != self._outputs.version:
            self._version, self._match = self._outputs.version, (0, 0)
            new = text[-_REMATCH:]
        for token in new:
            self._match = self._outputs.automaton.step(*self._match, token)

    def close(self) -> None:
        if self._outputs is not None:
            self._outputs.add(self._own.tokens[self._num_prompt :])

    def _find(self) -> tuple[int, _Automaton, int]:
        """Grade (-1: there is no match), where it is, and where the continuation starts."""
        length, start = self._own.longest
        source, is_elsewhere = self._own, 0
        if self._outputs is not None and self._version == self._outputs.version:
            state, other, automaton = *self._match, self._outputs.automaton
            while other > length and automaton.tokens[automaton.end[state]] == _SEPARATOR:
                state = automaton.link[state]  # it only ever ended an output: a shorter match
                other = automaton.length[state]
            if other > length:
                length, start = other, automaton.end[state]
                source, is_elsewhere = automaton, 1
        if length < self._shortest:
            return -1, source, 0
        return 2 * _bucket(length) + is_elsewhere, source, start


def _bucket(length: int) -> int:
    """Lengths that count as equally good: 1, 2, 3, 4, to 8, to 16, to 32, longer."""
    return min(length, 4) + min(max((length - 1).bit_length() - 2, 0), 4)
