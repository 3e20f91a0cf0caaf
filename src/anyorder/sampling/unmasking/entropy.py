"""The places whose distributions are surest, as many as are due. Dream (arXiv 2508.15487)."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, noisy, ranked


@dataclass(frozen=True, kw_only=True)
class Entropy(Commit):
    """The lowest entropies, as many as are due."""

    reads_entropy: ClassVar[bool] = True

    noise: Annotated[
        float, Range(0.0), "0: the best; else drawn in proportion to exp(-entropy / noise)"
    ] = 0.0

    @property
    def reads_chance(self) -> bool:
        """See Commit."""
        return self.noise > 0

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        scores = [-candidate.entropy for candidate in candidates]
        return ranked(noisy(scores, candidates, self.noise))[: step.due]
