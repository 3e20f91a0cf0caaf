"""The surest places, as long as what they may tell of each other is bounded.

EB-Sampler (arXiv 2505.24857): of the places by rising entropy, the longest beginning whose
entropies, the last one aside, add up to no more than the bound. Their sum bounds the mutual
information that drawing them independently ignores.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, ranked


@dataclass(frozen=True, kw_only=True)
class EntropyBound(Commit):
    """The lowest entropies, as long as their sum stays below a bound."""

    reads_entropy: ClassVar[bool] = True

    bound: Annotated[float, Range(0.0), "nats that may be ignored a step"] = 0.1

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        order = ranked([-candidate.entropy for candidate in candidates])
        count, ignored = 0, 0.0
        while count < len(order) and ignored <= self.bound:
            ignored += candidates[order[count]].entropy
            count += 1
        return order[: max(count, step.due)]
