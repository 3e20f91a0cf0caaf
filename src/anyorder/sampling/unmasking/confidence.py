"""The places whose drawn tokens are likeliest, as many as are due.

LLaDA's low-confidence remasking (arXiv 2502.09992), Dream's maskgit_plus (arXiv 2508.15487).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, noisy, ranked


@dataclass(frozen=True, kw_only=True)
class Confidence(Commit):
    """The likeliest tokens, as many as are due."""

    noise: Annotated[
        float, Range(0.0), "0: the best; else drawn in proportion to exp(probability / noise)"
    ] = 0.0

    @property
    def reads_chance(self) -> bool:
        """See Commit."""
        return self.noise > 0

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        scores = [candidate.probability for candidate in candidates]
        return ranked(noisy(scores, candidates, self.noise))[: step.due]
