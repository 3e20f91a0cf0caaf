"""The places whose likeliest token is furthest ahead of the second, as many as are due.

Dream's topk_margin (arXiv 2508.15487); "Train for the worst, plan for the best" (arXiv 2502.06768).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, noisy, ranked


@dataclass(frozen=True, kw_only=True)
class Margin(Commit):
    """The largest leads of the likeliest token over the second, as many as are due."""

    reads_margin: ClassVar[bool] = True

    noise: Annotated[
        float, Range(0.0), "0: the best; else drawn in proportion to exp(margin / noise)"
    ] = 0.0

    @property
    def reads_chance(self) -> bool:
        """See Commit."""
        return self.noise > 0

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        scores = [candidate.margin for candidate in candidates]
        return ranked(noisy(scores, candidates, self.noise))[: step.due]
