"""Take back the tokens that were least likely when they were placed, a fixed number a step.

The idea of Mask-Predict (arXiv 1904.09324), one step after the other on a canvas that fills up.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.revision import Revision
from anyorder.sampling.unmasking import Candidate, Step, ranked


@dataclass(frozen=True, kw_only=True)
class Lowest(Revision):
    """Take back the least likely tokens, in every step but the last."""

    count: Annotated[int, Range(1), "tokens a step"] = 1

    def reopen(self, standing: Seq[Candidate], step: Step) -> list[int]:
        """See Revision."""
        if step.after <= 0:
            return []
        return ranked([-candidate.probability for candidate in standing])[: self.count]
