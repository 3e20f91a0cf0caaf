"""Sentence BLEU against the reference, by sacrebleu (Post, arXiv 1804.08771), 0 to 1.

Exponential smoothing, and no precision of an order that the texts are too short for ("effective
order"), as sacrebleu advises for single sentences.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.core.errors import UserError
from anyorder.core.reward import Answer, Reward


@dataclass(frozen=True, kw_only=True)
class Bleu(Reward):
    """Overlap of word n-grams with the reference."""

    def judge(self, answers: Seq[Answer]) -> list[float]:
        """See Reward."""
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError:
            raise UserError(
                "the reward bleu needs sacrebleu; install it with `pip install "
                "'anyorder[evaluation]'`, or take the reward tokens."
            ) from None
        metric = BLEU(effective_order=True)
        return [
            metric.sentence_score(answer.text, [answer.reference]).score / 100 for answer in answers
        ]
