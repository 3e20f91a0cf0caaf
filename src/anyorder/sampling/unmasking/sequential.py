"""The first open places, as many as are due: left to right (SDAR, arXiv 2510.06303)."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import ClassVar

from anyorder.sampling.unmasking import Candidate, Commit, Step, ranked


@dataclass(frozen=True, kw_only=True)
class Sequential(Commit):
    """From left to right, as many as are due."""

    blind: ClassVar[bool] = True

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        return ranked([-candidate.place for candidate in candidates])[: step.due]
