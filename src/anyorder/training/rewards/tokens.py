"""The share of places at which answer and reference have the same token, of the longer's places.

Cheap, and never silent: it tells an almost right answer from a wrong one. It knows no synonyms and
no shifted words, so it suits short answers that are right or wrong place by place.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.core.reward import Answer, Reward


@dataclass(frozen=True, kw_only=True)
class Tokens(Reward):
    """Share of places with the reference's token."""

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        return [_agreement(answer.tokens, answer.reference_tokens) for answer in answers]


def _agreement(tokens: Seq[int], reference: Seq[int]) -> float:
    same = sum(ours == theirs for ours, theirs in zip(tokens, reference, strict=False))
    return same / max(len(tokens), len(reference))
