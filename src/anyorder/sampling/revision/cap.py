"""ReMDM-cap: take tokens back at a constant rate, as far as the process allows.

arXiv 2503.00307, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.revision import Revision, highest_rate
from anyorder.sampling.unmasking import Step


@dataclass(frozen=True, kw_only=True)
class Cap(Revision):
    """Take each token back with the same small probability a step."""

    probability: Annotated[float, Range(0.0, 1.0), "of a token, a step"] = 0.02

    def rate(self, step: Step) -> float:
        """See Revision."""
        return min(self.probability, highest_rate(step))
