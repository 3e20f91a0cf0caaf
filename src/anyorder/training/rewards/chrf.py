"""Sentence chrF against the reference, by sacrebleu (Popovic, W15-3049), 0 to 1.

Characters rather than words: kinder than BLEU to short texts and to languages with many endings.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.core.errors import UserError
from anyorder.core.reward import Answer, Reward


@dataclass(frozen=True, kw_only=True)
class Chrf(Reward):
    """Overlap of character n-grams with the reference."""

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        try:
            from sacrebleu.metrics.chrf import CHRF
        except ImportError:
            raise UserError(
                "the reward chrf needs sacrebleu; install it with `pip install "
                "'anyorder[evaluation]'`, or take the reward tokens."
            ) from None
        metric = CHRF()
        return [
            metric.sentence_score(answer.text, [answer.reference]).score / 100 for answer in answers
        ]
