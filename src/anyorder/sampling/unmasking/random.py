"""Places in random order, as many as are due.

One at a time, this is the first-hitting sampler (Zheng et al., arXiv 2409.02908): which place is
revealed next is uniform, and when, the network does not ask. Drawn at temperature 1, it is an exact
sample of masked diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import ClassVar

from anyorder.sampling.unmasking import Candidate, Commit, Step, ranked


@dataclass(frozen=True, kw_only=True)
class Random(Commit):
    """Places in random order, as many as are due; one at a time is first-hitting sampling."""

    blind: ClassVar[bool] = True

    @property
    def reads_chance(self) -> bool:
        """See Commit."""
        return True

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        return ranked([candidate.chance for candidate in candidates])[: step.due]
