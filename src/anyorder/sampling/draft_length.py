"""How far to draft: as far as pays, judged by measured acceptance and measured passes.

With a chance of `a` that the next proposal is accepted, a draft of k tokens makes
(1 - a^(k+1)) / (1 - a) tokens final in one check (Leviathan et al., 2023, arXiv:2211.17192). The
length that makes most tokens per second is taken; where that is none at all, the text goes on one
token at a time and a short draft is tried now and then.
"""

from __future__ import annotations

from collections.abc import Callable

_CANDIDATES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
_MEMORY = 0.85
"""What a tried proposal counts for after the next draft: acceptance comes in bursts."""
_PRIOR = 0.75, 1.5
"""Acceptance assumed at first, and how many proposals' weight that has."""
_CAUTION = 1.02
"""A draft must promise this much more than none."""
_FIRST_WAIT, _LONGEST_WAIT = 4, 64
"""Steps without a draft before one is tried again; doubled each time it does not help."""
_TRIAL = 2
"""Tokens of a draft that is tried again."""


class DraftLength:
    """Statistics of one text's drafts, by grade, and the length they speak for."""

    def __init__(self, longest: int) -> None:
        self._candidates = [k for k in _CANDIDATES if k < longest] + [longest]
        self._counts: dict[int, tuple[float, float]] = {}
        """By grade: proposals accepted and proposals tried, weighted by age."""
        self._waits: dict[int, tuple[int, int]] = {}
        """By grade: steps still to wait, steps to wait the next time."""
        self.num_steps = 0
        self.num_plain = 0
        """Steps without a draft because none would have paid."""

    def acceptance(self, grade: int) -> float:
        """The chance that a proposal is accepted after the one before it was."""
        accepted, tried = self._counts.get(grade, (0.0, 0.0))
        value, weight = _PRIOR
        return (accepted + value * weight) / (tried + weight)

    def record(self, grade: int, proposed: int, accepted: int) -> None:
        """A draft of `proposed` tokens in a row had `accepted` of them accepted."""
        if not proposed:
            return
        tried = accepted + (accepted < proposed)
        old_accepted, old_tried = self._counts.get(grade, (0.0, 0.0))
        decay = _MEMORY**tried
        self._counts[grade] = old_accepted * decay + accepted, old_tried * decay + tried
        if accepted == proposed:
            self._waits.pop(grade, None)

    def choose(
        self,
        grade: int,
        *,
        plain: float | None,
        check: Callable[[int], float | None],
        draft: Callable[[int], float],
    ) -> int:
        """How many tokens to draft; 0 for none.

        `plain` are the seconds of a pass over one token, `check(k)` of one over a draft of k and
        the token before it, `draft(k)` what making the draft takes; None is unknown.
        """
        self.num_steps += 1
        if plain is None:
            return 0  # one plain step, to learn what one costs
        chance = self.acceptance(grade)
        best, best_rate = 0, _CAUTION / plain
        for length in self._candidates:
            seconds = check(length)
            expected = sum(chance**n for n in range(length + 1))
            rate = expected / ((plain if seconds is None else seconds) + draft(length))
            if rate > best_rate:
                best, best_rate = length, rate
        if best:
            return best
        return self._trial(grade, draft)

    def _trial(self, grade: int, draft: Callable[[int], float]) -> int:
        """None pays; count down to the next trial."""
        left, wait = self._waits.get(grade, (_FIRST_WAIT, _FIRST_WAIT))
        length = min(_TRIAL, self._candidates[-1])
        if left > 0 or draft(length) == float("inf"):
            self._waits[grade] = left - 1, wait
            self.num_plain += 1
            return 0
        wait = min(2 * wait, _LONGEST_WAIT)
        self._waits[grade] = wait, wait
        return length
