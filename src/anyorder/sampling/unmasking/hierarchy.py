"""The likeliest token of every gap, and all that are very likely.

dInfer's hierarchical decoding (arXiv 2510.08666): a gap is a run of open places. Its likeliest
token is taken if it is likely at all; neighbours, which depend on each other most, are rarely taken
together, and gaps are halved again and again.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, ranked


@dataclass(frozen=True, kw_only=True)
class Hierarchy(Commit):
    """The likeliest token of each run of open places, and all that are very likely."""

    level: Annotated[float, Range(0.0, 1.0), "a token this likely is taken anywhere"] = 0.9
    low: Annotated[float, Range(0.0, 1.0), "a gap's likeliest must be this likely"] = 0.5

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        scores = [candidate.probability for candidate in candidates]
        gaps: list[list[int]] = []
        for index in sorted(range(len(scores)), key=lambda i: candidates[i].place):
            place = candidates[index].place
            if gaps and candidates[gaps[-1][-1]].place == place - 1:
                gaps[-1].append(index)
            else:
                gaps.append([index])
        best = {max(gap, key=lambda i: scores[i]) for gap in gaps}
        order = ranked(scores)
        taken = [
            index
            for index in order
            if scores[index] >= self.level or (index in best and scores[index] >= self.low)
        ]
        rest = [index for index in order if index not in taken]
        return [*taken, *rest][: max(len(taken), step.due)]
