"""All places whose drawn tokens are likely enough, and no fewer than are due.

Fast-dLLM (arXiv 2505.22618), LLaDA2.0 (arXiv 2512.15745); with steps, SDAR's dynamic rule.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, ranked


@dataclass(frozen=True, kw_only=True)
class Threshold(Commit):
    """All tokens that are likely enough, the best one in any case."""

    level: Annotated[float, Range(0.0, 1.0), "smallest probability that is enough"] = 0.9

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        scores = [candidate.probability for candidate in candidates]
        count = sum(score >= self.level for score in scores)
        return ranked(scores)[: max(count, step.due)]
