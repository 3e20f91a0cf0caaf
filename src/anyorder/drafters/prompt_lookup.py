"""Prompt lookup: guess that what followed the text's last tokens earlier follows them again.

Saxena, 2023. The longest match of `longest` to `shortest` tokens wins, the latest among equals. An
index of all n-grams is kept, so a look costs a few dictionary lookups whatever the text's length.
It pays where a text repeats its prompt (behind an encoder: its source) or itself, and costs next to
nothing where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from anyorder.core.drafter import NO_DRAFT, Draft, Drafter, DraftSession, Proposing
from anyorder.core.options import Range

if TYPE_CHECKING:
    import torch

    from anyorder.core.method import Context
    from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class PromptLookup(Drafter):
    """What followed the last tokens when they last occurred in prompt or text."""

    longest: Annotated[int, Range(1, 16), "longest match looked for, in tokens"] = 8
    shortest: Annotated[int, Range(1, 16), "shortest match that is good enough"] = 1

    def chance(self, grade: int) -> float:
        # On answers of SmolLM2-135M: 0.2 to 0.6 after a match of one token, 0.4 to 0.7 after one of
        # two, 0.8 of three, 0.9 and more of eight.
        return 1 - 0.7 / max(grade, 1)

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        source = () if sequence.memory is None else sequence.memory.tokens
        return _Lookup(self, source, context.prompt)


class _Lookup(DraftSession):
    """Where every n-gram of source and text last ended, and before that."""

    def __init__(self, options: PromptLookup, source: Seq[int], prompt: Seq[int]) -> None:
        self._sizes = range(options.longest, min(options.shortest, options.longest) - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        """By n-gram: the position after its latest occurrence that something follows."""
        self._text: list[int] = []
        self._num_source = len(source)
        self._grow([*source, *prompt])

    def expects(self) -> int:
        return self._find()[0]

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        grade, start = self._find()
        if grade < 0:
            return NO_DRAFT
        tokens = self._text[start : start + limit]
        period = len(self._text) - start
        while len(tokens) < limit:  # a repetition is still under way: guess that it goes on
            tokens.append(tokens[len(tokens) - period])
        return Draft(tokens=tokens, grade=grade)
        yield  # a generator that asks for no passes

    def observe(
        self,
        text: Seq[int],
        *,
        features: torch.Tensor | None,
        heads: Seq[Seq[tuple[int, float]]],
    ) -> None:
        self._grow(text[len(self._text) - self._num_source :])

    def _find(self) -> tuple[int, int]:
        """Length of the longest match and where its continuation starts; -1 if there is none."""
        text = self._text
        for size in self._sizes:
            if size <= len(text):
                end = self._ends.get(tuple(text[-size:]))
                if end is not None:
                    return size, end
        return -1, 0

    def _grow(self, tokens: Seq[int]) -> None:
        for token in tokens:
            # What ends here now has a continuation.
            end = len(self._text)
            for size in self._sizes:
                if 0 < size <= end:
                    self._ends[tuple(self._text[end - size :])] = end
            self._text.append(token)
