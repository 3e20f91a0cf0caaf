"""ReMDM-loop: fill most of the canvas, revise it for a while at that level, fill the rest.

arXiv 2503.00307, section 4: the share of masks falls as usual until it is `level`, stays there
while tokens are taken back at a constant rate and filled anew, and then falls to none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyorder.core.errors import InvalidRequest
from anyorder.core.options import Range
from anyorder.sampling.revision import Revision, highest_rate
from anyorder.sampling.unmasking import Schedule, Step, open_share


@dataclass(frozen=True, kw_only=True)
class Loop(Revision):
    """Fill most places, then take tokens back and fill them anew for a while."""

    probability: Annotated[float, Range(0.0, 1.0), "of a token to be taken back, a step"] = 0.02
    level: Annotated[float, Range(0.0, 1.0), "share of masks while looping"] = 0.1
    begin: Annotated[float, Range(0.0, 1.0), "share of the steps before looping"] = 0.45
    end: Annotated[float, Range(0.0, 1.0), "share of the steps when looping ends"] = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin > self.end:
            raise InvalidRequest(
                f"the loop begins at {self.begin:g} of the steps and ends at {self.end:g}; let it "
                "begin no later than it ends."
            )

    def open_share(self, schedule: Schedule, done: float) -> float:
        """See Revision."""
        if done >= 1:
            return 0.0
        if done < self.begin:
            return 1 - (1 - self.level) * (1 - open_share(schedule, done / self.begin))
        if done <= self.end:
            return self.level
        return self.level * open_share(schedule, (done - self.end) / (1 - self.end))

    def rate(self, step: Step) -> float:
        """See Revision."""
        is_looping = 0 < step.after == step.before
        return min(self.probability, highest_rate(step)) if is_looping else 0.0
