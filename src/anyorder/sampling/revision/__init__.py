"""Revision policies: which tokens on a canvas a denoising step takes back.

One policy a file, chosen as an option (`revise=cap`, `revise.rate=0.05`). A token that may be taken
back is not final: with any policy but `keep`, tokens become final when the canvas (or the window,
or the block) is done. Fixed tokens are never taken back.

ReMDM (arXiv 2503.00307) is a family of such processes for models that were trained without it. On
the way from a share t of masked tokens to a smaller share s, a token is taken back with probability
sigma and a masked place filled with probability (t - s + sigma (1 - t)) / t: the share of masks
then is what it would be without. That needs sigma <= s / (1 - t), which is reached at most.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import ClassVar

from anyorder.core.options import validate
from anyorder.sampling.unmasking import Candidate, Schedule, Step, open_share


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Base of all revision policies. A subclass's fields are its options."""

    revises: ClassVar[bool] = True
    """May it take anything back at all?"""
    needs_steps: ClassVar[bool] = True
    """Does it make no sense without a number of steps?"""
    rereads: ClassVar[bool] = False
    """Does it look at what the network now says about places that are filled (`replace`)?"""

    def __post_init__(self) -> None:
        validate(self)

    def open_share(self, schedule: Schedule, done: float) -> float:
        """Share of open places when this share of the steps is done."""
        return open_share(schedule, done)

    def goes_on(self, number: int, steps: int | None, num_full: int) -> bool:
        """Is there a step of this number where no place is open? `num_full` such were made."""
        return steps is not None and number < steps

    def rate(self, step: Step) -> float:
        """With which probability a filled place is opened again; what is filled makes up for it."""
        return 0.0

    def reopen(self, standing: Seq[Candidate], step: Step) -> list[int]:
        """Which of the standing tokens to take back, by index. Their numbers are those of when they
        were placed, their chances new."""
        rate = self.rate(step)
        return [i for i, candidate in enumerate(standing) if candidate.chance < rate]

    def replace(self, standing: Seq[Candidate], answers: Seq[Candidate]) -> list[int]:
        """Which of the standing tokens to replace by the network's new answers, by index."""
        return []


def highest_rate(step: Step) -> float:
    """The largest sigma that ReMDM allows for this step."""
    return min(1.0, step.after / (1 - step.before)) if step.before < 1 else 1.0
