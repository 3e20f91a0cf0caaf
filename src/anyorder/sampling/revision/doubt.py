"""ReMDM-conf: take back tokens that were unlikely when they were placed.

arXiv 2503.00307, section 4: the highest rate is shared out among the standing tokens by a softmax
of minus their probabilities then. Masked places are filled as without revision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.sampling.revision import Revision, highest_rate
from anyorder.sampling.unmasking import Candidate, Step


@dataclass(frozen=True, kw_only=True)
class Doubt(Revision):
    """Take back about one token a step, mostly one that was unlikely when it was placed."""

    def reopen(self, standing: Seq[Candidate], step: Step) -> list[int]:
        """See Revision."""
        weights = [math.exp(-candidate.probability) for candidate in standing]
        scale = highest_rate(step) / max(sum(weights), 1e-300)
        return [i for i, c in enumerate(standing) if c.chance < weights[i] * scale]
