"""Commit policies: which open places of a canvas a denoising step makes final.

One policy a file, chosen as an option (`commit=threshold`, `commit.level=0.9`). A policy sees plain
numbers about each open place and says which to take, in order of preference. It takes at least as
many as are due by the schedule, so that a fixed number of steps is enough, and never none, so that
without one it ends too; `ancestral` alone leaves both to chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import ClassVar, Literal

from anyorder.core.options import validate

Schedule = Literal["linear", "cosine", "late", "geometric"]
"""Share of places still open when a share `done` of the steps is done. linear: 1 - done. cosine:
cos(pi/2 done), few places first (MaskGIT, arXiv 2202.04200). late: linear down to a thousandth, and
numbers of places rounded down, not up; the last step takes the rest (Dream, arXiv 2508.15487).
geometric: 1 - exp(-level), of levels that fall from 20 to a ten-thousandth by equal factors, which
spends its steps where nearly all places are open and where nearly none are (SEDD's for uniform
noise, arXiv 2310.16834)."""
_LEVELS = (20.0, 1e-4)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Candidate:
    """What the network says about one place."""

    place: int
    token: int
    """Drawn there."""
    logprob: float
    """Of the token, under the model's distribution."""
    entropy: float = 0.0
    margin: float = 0.0
    chance: float = 0.0
    """A random number in [0, 1) of this place and step."""
    alternatives: Seq[tuple[int, float]] = ()
    confidence: float | None = None
    """The log-probability that policies look at; None: `logprob`."""

    @property
    def probability(self) -> float:
        """Of the token, as policies see it."""
        return math.exp(self.logprob if self.confidence is None else self.confidence)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Where in its schedule a canvas is."""

    before: float
    """Share of places open before the step."""
    after: float
    """Share of places that should be open after it; 0: the last step."""
    due: int
    """How many places the schedule wants at least; 1 without a number of steps."""

    rate: float = 0.0
    """Probability with which a filled place is opened in this step."""

    @property
    def share(self) -> float:
        """With which probability an open place is due."""
        if self.after <= 0:
            return 1.0
        return (self.before - self.after + self.rate * (1 - self.before)) / self.before


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Base of all commit policies. A subclass's fields are its options."""

    reads_entropy: ClassVar[bool] = False
    reads_margin: ClassVar[bool] = False
    blind: ClassVar[bool] = False
    """Does it choose places without looking at what is predicted there? One place a step is then an
    exact draw: places in that order, each given those before."""

    needs_steps: ClassVar[bool] = False
    """Does it make no sense without a number of steps?"""

    def __post_init__(self) -> None:
        validate(self)

    @property
    def reads_chance(self) -> bool:
        """Does it look at the candidates' random numbers?"""
        return False

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """Which of the candidates to take, by index, the most wanted first."""
        raise AssertionError(f"{type(self).__name__} does not define choose()")


def open_share(schedule: Schedule, done: float) -> float:
    """Share of places still open when this share of the steps is done."""
    if done >= 1:
        return 0.0
    if schedule == "cosine":
        return math.cos(math.pi / 2 * done)
    if schedule == "geometric":
        return -math.expm1(-_LEVELS[0] * (_LEVELS[1] / _LEVELS[0]) ** done)
    return 1 - done if schedule == "linear" else 1 - done * (1 - 1e-3)


def ranked(scores: Seq[float]) -> list[int]:
    """Indices by falling score, equal ones in order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def noisy(scores: Seq[float], candidates: Seq[Candidate], noise: float) -> list[float]:
    """Scores of which the k largest are k draws without replacement in proportion to exp(score /
    noise): Gumbel top-k (arXiv 1903.06059). No noise: the scores."""
    if not noise:
        return list(scores)
    return [
        score / noise - math.log(-math.log(max(candidate.chance, 1e-300)))
        for score, candidate in zip(scores, candidates, strict=True)
    ]
