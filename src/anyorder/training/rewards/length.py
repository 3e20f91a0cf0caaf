"""How near the answer's length is to a wanted one: the shorter of the two by the longer."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.core.reward import Answer, Reward


@dataclass(frozen=True, kw_only=True)
class Length(Reward):
    """1 for a text of the wanted length, less the further it is from it."""

    tokens: Annotated[int | None, Range(1), "wanted length; none: the reference's"] = None

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        wanted = [self.tokens or len(answer.reference_tokens) for answer in answers]
        pairs = [(len(a.tokens), length) for a, length in zip(answers, wanted, strict=True)]
        return [min(pair) / max(pair) for pair in pairs]
