"""How well parts of a text go on from what stands before them, as a judge sees it.

The score of a part x of |x| tokens, behind a prompt P, earlier parts M and its own heading H:

    ( log p(x | P, M, H) - contrast * log p(x | P, H) ) / |x|

At contrast 0 it is the part's likelihood in its place; at 1 its pointwise mutual information with
what stands before it. The likelihood alone holds hard words against a part, whatever it is about;
the difference asks how much easier the earlier parts make it (the objective of Li et al., arXiv
1510.03055; why likelihoods of different texts want such a reference: Holtzman et al., arXiv
2104.08315). Between 0 and 1 it is (1 - contrast) of the one and contrast of the other.

It takes passes alone: all parts of a text in one, by any network that reads from left to right.
Not told: what a reader dislikes and a network finds likely. A part that repeats another scores well
at any contrast.
"""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from math import fsum, inf

from anyorder.core.forward import (
    NOTHING,
    ForwardRequest,
    ForwardResult,
    Outputs,
    forward,
    forward_all,
)
from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a part stands in a text, which begins with the prompt."""

    heading: tuple[int, ...]
    """What it is under."""
    start: int
    """Position of its first own token."""


Scoring = Generator[list[ForwardRequest], list[ForwardResult], list[float]]


class Judge:
    """Scores parts. A part without tokens has the score -inf."""

    def __init__(self, sequence: Sequence, *, prompt: Seq[int], contrast: float) -> None:
        """`sequence` is the judge's own; whatever is cached there may be discarded."""
        self._sequence = sequence
        self._prompt = prompt
        self._contrast = contrast

    def read(self, text: Seq[int], places: Seq[Place], ends: Seq[int]) -> Scoring:
        """Scores of parts of a text, in order, up to these positions."""
        yield from remember(self._sequence, self._prompt)
        start = min(_num_cached(self._sequence, text), places[0].start - 1)
        parts = [text[place.start : end] for place, end in zip(places, ends, strict=True)]
        rows = [
            position - 1 - start
            for place, end in zip(places, ends, strict=True)
            for position in range(place.start, end)
        ]
        whole = ForwardRequest(
            sequence=self._sequence,
            tokens=text[start : ends[-1]],
            start=start,
            rows=rows,
            outputs=_given([token for part in parts for token in part]),
        )
        scores = yield from self._scores(places, parts, [whole])
        return scores

    def compare(self, text: Seq[int], places: Seq[Place], parts: Seq[Seq[int]]) -> Scoring:
        """Scores that other parts would have, each by itself in its place of a text that was read
        before."""
        requests, forks = [], []
        for place, part in zip(places, parts, strict=True):
            if part:
                forks.append(self._sequence.fork())
                requests.append(_scored(forks[-1], text[: place.start], (), part))
        try:
            scores = yield from self._scores(places, parts, requests)
        finally:
            for fork in forks:
                fork.close()
        return scores

    def _scores(
        self, places: Seq[Place], parts: Seq[Seq[int]], requests: list[ForwardRequest]
    ) -> Scoring:
        """`requests` tell the parts' tokens in their places, one part after the other."""
        alone, forks = [], []
        for place, part in zip(places, parts, strict=True):
            if part and self._contrast:
                forks.append(self._sequence.fork())
                alone.append(_scored(forks[-1], self._prompt, place.heading, part))
        try:
            asked = [*requests, *alone]
            results = (yield from forward_all(asked)) if asked else []
        finally:
            for fork in forks:
                fork.close()
        there = iter([value for result in results[: len(requests)] for value in result.given])
        blind = iter(results[len(requests) :])
        scores = []
        for part in parts:
            if not part:
                scores.append(-inf)
                continue
            total = fsum(next(there) for _ in part)
            if self._contrast:
                total -= self._contrast * fsum(next(blind).given)
            scores.append(total / len(part))
        return scores


def remember(
    sequence: Sequence, text: Seq[int]
) -> Generator[list[ForwardRequest], list[ForwardResult], None]:
    """Have a sequence hold this text at its beginning, if it does not yet."""
    start = _num_cached(sequence, text)
    if start < len(text):
        yield from forward(sequence, text[start:], start, outputs=NOTHING)


def _num_cached(sequence: Sequence, text: Seq[int]) -> int:
    """How much of the text is cached."""
    pairs = zip(sequence.tokens, text, strict=False)
    most = min(sequence.length, len(text))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), most)


def _given(tokens: Seq[int]) -> Outputs:
    return Outputs(token=False, logprob=False, given=tuple(tokens))


def _scored(
    sequence: Sequence, before: Seq[int], heading: Seq[int], part: Seq[int]
) -> ForwardRequest:
    """Log-probabilities of a part behind a text that the sequence holds, and a heading."""
    first = len(heading)
    return ForwardRequest(
        sequence=sequence,
        tokens=[before[-1], *heading, *part[:-1]],
        start=len(before) - 1,
        rows=range(first, first + len(part)),
        outputs=_given(part),
    )
