"""As many places as their joint certainty allows. Fast-dLLM's factor rule (arXiv 2505.22618).

The n likeliest tokens are taken where (n + 1) (1 - p_n) < factor, p_n the least likely of them:
greedy parallel decoding is then close to one token at a time.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated

from anyorder.core.options import Range
from anyorder.sampling.unmasking import Candidate, Commit, Step, ranked


@dataclass(frozen=True, kw_only=True)
class Factor(Commit):
    """The n likeliest tokens, as long as (n + 1) times the last one's doubt is small."""

    factor: Annotated[float, Range(0.0), "what (n + 1) (1 - probability) stays below"] = 1.0

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        scores = [candidate.probability for candidate in candidates]
        order = ranked(scores)
        fits = [n for n, i in enumerate(order, 1) if (n + 1) * (1 - scores[i]) < self.factor]
        return order[: max([step.due, *fits])]
