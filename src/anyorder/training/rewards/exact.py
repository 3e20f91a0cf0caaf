"""Exactly the reference, spaces at the ends aside: 1, or else 0."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.core.reward import Answer, Reward


@dataclass(frozen=True, kw_only=True)
class Exact(Reward):
    """1 for the reference, 0 for any other text."""

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        return [float(answer.text.strip() == answer.reference.strip()) for answer in answers]
