"""ReMDM-rescale: take tokens back at a share of the highest rate that the process allows.

arXiv 2503.00307, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.revision import Revision, highest_rate
from anyorder.sampling.unmasking import Step


@dataclass(frozen=True, kw_only=True)
class Rescale(Revision):
    """Take tokens back at a share of the highest rate."""

    share: Annotated[float, Range(0.0, 1.0), "of the highest rate"] = 0.02

    def rate(self, step: Step) -> float:
        """See Revision."""
        return self.share * highest_rate(step)
