"""Rounds of feedback: a judge scores the parts of a text, the weakest are written again.

Self-Refine (Madaan et al., arXiv 2303.17651) with a score for the critic (`sampling.coherence`). A
round reads the whole text, writes its weakest parts again, all in the same passes, each behind the
text as it stood when the round began, and compares both there; the better one stays.

Not here: how parts are written and put together, which is the method's.
"""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from typing import Generic, Protocol, Self, TypeVar

from anyorder.core.forward import Decoding, ForwardRequest, ForwardResult, forward_all
from anyorder.core.method import Context
from anyorder.core.sequence import Sequence
from anyorder.sampling.coherence import Judge, Place, remember


class Part(Protocol):
    """A stretch of text that can be written again."""

    number: str
    heading: list[int]
    """What it is under, in the text."""
    tokens: list[int]
    num_ready: int
    """How many of its tokens stand in the text."""
    is_final: bool
    done: bool
    """Is it written?"""
    sequence: Sequence

    def again(self, before: Seq[int], *, sequence: Sequence, number: int, room: int) -> Self:
        """The same part, to be written in this round behind this text, which `sequence` holds but
        for the last token; at most `room` tokens."""

    def take(self, other: Self) -> None:
        """Say what another says."""

    def request(self) -> ForwardRequest:
        """What it wants to know to be written."""

    def hear(self, result: ForwardResult) -> None:
        """Take the answer."""


P = TypeVar("P", bound=Part)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed(Generic[P]):
    """A part, and the position of its first own token."""

    part: P
    start: int


class Document(Protocol[P]):
    """Parts in order."""

    num_shown: int
    """How many tokens of the text were emitted."""

    def merged(self) -> tuple[list[int], list[Placed[P]]]:
        """Prompt and text, final or not, and where in it the parts stand."""

    def show(self) -> None:
        """Emit what became final."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What is written again, and how often."""

    rounds: int
    weakest: int
    """Most parts of a round."""
    threshold: float | None
    """Only parts of a lower score."""
    contrast: float
    judge: str
    """The judge's role."""

    def decode(self, context: Context, document: Document[P], sequence: Sequence) -> Decoding:
        """All rounds over a text whose parts are written; then it is final. `sequence` holds the
        prompt, and is the target's."""
        yield from _Rounds(self, context, document, sequence).decode()


class _Rounds(Generic[P]):
    def __init__(
        self, options: Feedback, context: Context, document: Document[P], sequence: Sequence
    ) -> None:
        self._options, self._context, self._document = options, context, document
        self._writer = self._reader = sequence
        """Hold the text, so that rewrites go on from it and the judge needs to read it once."""
        if options.judge != sequence.role:
            self._reader = context.sequence(options.judge)
        self._judge = Judge(self._reader, prompt=context.prompt, contrast=options.contrast)
        self._most = len(context.prompt) + context.max_new_tokens
        """Tokens of prompt and text that are seen."""
        self._tried: dict[P, list[int]] = {}
        """Behind which text a part was last written again."""
        self._previewed: list[int] = []

    def decode(self) -> Decoding:
        room = self._context.models[self._options.judge].context_length
        with self._reader:
            if self._most > room:
                self._context.note(
                    f"the judge's context of {room} is too short for this request: no part is "
                    "judged."
                )
            else:
                for number in range(1, self._options.rounds + 1):
                    if not (yield from self._round(number)):
                        break
        text, placed = self._document.merged()
        self._preview(text)
        for item in placed:
            item.part.is_final = True
        self._document.show()

    def _round(self, number: int) -> Generator[list[ForwardRequest], list[ForwardResult], bool]:
        """Write the weakest parts again. May another round follow?"""
        text, placed = self._document.merged()
        self._preview(text)
        placed = [item for item in placed if not item.part.is_final and item.start < self._most]
        if not placed:
            return False
        places = [Place(heading=tuple(item.part.heading), start=item.start) for item in placed]
        ends = [min(item.start + item.part.num_ready, self._most) for item in placed]
        scores = yield from self._judge.read(text, places, ends)
        weak, num_settled = self._weak(text, placed, scores)
        if number == self._options.rounds:
            num_settled = min(weak, default=len(placed))
        for item in placed[:num_settled]:
            item.part.is_final = True
        self._document.show()
        pairs = zip(placed, scores, strict=True)
        report = f"round {number} of feedback: part "
        report += ", ".join(f"{item.part.number} scores {score:.3f}" for item, score in pairs)
        if self._context.finished or not weak:
            self._context.note(f"{report}; none was written again.")
            return False
        rewrites = yield from self._rewrite(text, [placed[index] for index in weak], number)
        said = [rewrite.tokens[: rewrite.num_ready] for rewrite in rewrites]
        values = yield from self._judge.compare(text, [places[index] for index in weak], said)
        for index, rewrite, value in zip(weak, rewrites, values, strict=True):
            part, is_better = placed[index].part, value > scores[index]
            self._tried[part] = text[: placed[index].start]
            if is_better:
                part.take(rewrite)
            report += f"; {part.number} written again scores {value:.3f} and is "
            report += "kept" if is_better else "dropped"
        self._context.note(f"{report}.")
        return True

    def _weak(
        self, text: list[int], placed: list[Placed[P]], scores: list[float]
    ) -> tuple[list[int], int]:
        """Which parts to write again, in order; and how many at the beginning no round will."""
        threshold = inf if self._options.threshold is None else self._options.threshold
        below = [index for index, score in enumerate(scores) if score < threshold]
        again = below
        if self._context.request.temperature == 0:  # it would say the same
            again = [
                index
                for index in below
                if self._tried.get(placed[index].part) != text[: placed[index].start]
            ]
        weakest = sorted(again, key=lambda index: scores[index])[: self._options.weakest]
        return sorted(weakest), min(below, default=len(scores))

    def _rewrite(
        self, text: list[int], weak: list[Placed[P]], number: int
    ) -> Generator[list[ForwardRequest], list[ForwardResult], list[P]]:
        """The same parts, written behind the text before them."""
        yield from remember(self._writer, text[: weak[-1].start - 1])
        rewrites = [
            item.part.again(
                text[: item.start],
                sequence=self._writer.fork(),
                number=number,
                room=self._most - item.start,
            )
            for item in weak
        ]
        try:
            while active := [rewrite for rewrite in rewrites if not rewrite.done]:
                results = yield from forward_all([rewrite.request() for rewrite in active])
                for rewrite, result in zip(active, results, strict=True):
                    rewrite.hear(result)
        finally:
            for rewrite in rewrites:
                rewrite.sequence.close()
        return rewrites

    def _preview(self, text: list[int]) -> None:
        """Tell what stands in the text and is not final."""
        new = text[len(self._context.prompt) : self._most]
        pairs = list(zip_longest(self._previewed, new))
        shown = self._document.num_shown
        places = [place for place in range(shown, len(pairs)) if pairs[place][0] != pairs[place][1]]
        self._context.preview(places, [pairs[place][1] for place in places])
        self._previewed = new
