"""How far to draft: as far as pays, judged by measured acceptance and measured passes.

With a chance of `f` that the first proposal is accepted and of `a` that the next one is after one
that was, a draft of k tokens makes 1 + f (1 - a^k) / (1 - a) tokens final in one check (Leviathan
et al., 2023, arXiv:2211.17192, with f = a). The two differ: where a text begins to copy, the first
token is the doubtful one. The length that makes most tokens per second is taken; where that is none
at all, the text goes on one token at a time and a short draft is tried now and then.

A tree's tokens come with chances of their own, and the unlikely ones are left out of a check as far
as that makes more tokens per second.

Estimates err, and a text may change its nature, so an account is kept of what drafts have saved and
lost, and the loss to expect of a draft must be covered. That bounds the loss on a text where no
draft helps: about a pass, and then a small share of the time, whatever a check costs.

Whoever shares the pass waits for a longer one too. With n others, who make a token each, the rate
that counts is everybody's: n tokens more, whatever is drafted, and a token that is accepted saves
the n + 1st part of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

_CANDIDATES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
_MEMORY = 0.85
"""What a tried proposal counts for after the next draft: acceptance comes in bursts."""
_PRIOR = 1.5
"""How many proposals' weight has what a drafter says of a grade before any was tried."""
_DOUBT = 0.5, 0.6
"""Acceptance and weight that are never forgotten: a few lucky drafts make the next not certain."""
_CAUTION = 1.02
"""A draft must promise this much more than none."""
_TRIAL = 2
"""Tokens of a draft that is tried although it promises nothing ..."""
_TRUST = 2.0
"""... and how many proposals' weight the statistics have that spoke against it."""
_CREDIT = 0.75
"""Plain passes that drafting may lose at first ..."""
_SHARE = 0.01
"""... and with every step ..."""
_SAVINGS = 4.0
"""... and at most at a time, however much it saved before."""


class DraftLength:
    """Statistics of one text's drafts, by grade, and the length they speak for."""

    def __init__(self, longest: int, prior: Callable[[int], float]) -> None:
        """`longest` draft in tokens; `prior` is the acceptance to expect of a grade at first."""
        self.longest = longest
        self._prior = prior
        self._candidates = [k for k in _CANDIDATES if k < longest] + [longest]
        self._counts: dict[int, tuple[float, float]] = {}
        """By grade: first proposals accepted and tried, weighted by age."""
        self._later: dict[int, tuple[float, float]] = {}
        """The same of proposals after an accepted one."""
        self._funds = _CREDIT
        """What drafts may lose now, in plain passes."""
        self._losses: Callable[[int], float] = lambda length: 0.0
        """What a draft of this length loses if nothing of it is accepted, in plain passes."""
        self._saved = 1.0
        """What an accepted token saves, in plain passes: one of everybody's."""
        self._is_trial = False
        self._checked = 1.0
        """Share of a tree that was worth checking lately."""
        self.num_steps = 0
        self.num_plain = 0
        """Steps without a draft because none would have paid."""

    @property
    def complaint(self) -> str | None:
        """What there is to tell where drafts hardly ever paid."""
        if self.num_plain <= self.num_steps / 2:
            return None
        return (
            f"speculation did not pay: {self.num_plain} of {self.num_steps} steps went without a "
            "draft."
        )

    def first(self, grade: int) -> float:
        """The chance that the first proposal is accepted."""
        return _chance(self._counts.get(grade, self._expected(grade)))

    def later(self, grade: int) -> float:
        """The chance that a proposal is accepted after the one before it was."""
        return _chance(self._later.get(grade, self._expected(grade)))

    def _expected(self, grade: int) -> tuple[float, float]:
        return self._prior(grade) * _PRIOR, _PRIOR

    def record(self, grade: int, proposed: int, accepted: int) -> None:
        """The draft that was last chosen, in the end of `proposed` tokens in a row, had `accepted`
        of them accepted."""
        if not proposed:
            return
        self._earn(accepted * self._saved - self._losses(proposed))
        self._count(self._counts, grade, min(accepted, 1), 1)
        if accepted and proposed > 1:
            tried = accepted - 1 + (accepted < proposed)
            self._count(self._later, grade, accepted - 1, tried)

    def _count(
        self, counts: dict[int, tuple[float, float]], grade: int, accepted: int, tried: int
    ) -> None:
        old_accepted, old_tried = counts.get(grade, self._expected(grade))
        decay = _MEMORY**tried
        if self._is_trial:
            decay = min(decay, _TRUST / old_tried)
        counts[grade] = old_accepted * decay + accepted, old_tried * decay + tried

    def choose(
        self,
        grade: int,
        *,
        plain: float | None,
        check: Callable[[int], float | None],
        draft: Callable[[int], float],
        others: int = 0,
    ) -> int:
        """How many tokens to draft; 0 for none.

        `plain` are the seconds of a pass over one token, `check(k)` of one over a draft of k and
        the token before it, `draft(k)` what making the draft takes; None is unknown. `others` is
        how many other texts share the pass.
        """
        self.num_steps += 1
        self._is_trial = False
        if plain is None:
            return 0  # one plain step, to learn what one costs
        seconds = plain

        def losses(length: int) -> float:
            checked = check(length)
            return ((seconds if checked is None else checked) + draft(length)) / seconds - 1

        self._losses, self._saved = losses, 1 / (1 + others)
        self._earn(_SHARE / (1 + others))
        first, later = self.first(grade), self.later(grade)
        best, best_rate, trial = 0, (others + _CAUTION) / (others + 1), 0
        for length in self._candidates:
            loss = losses(length)
            if loss == inf or loss * (1 - first) > self._funds:
                continue
            expected = 1 + first * sum(later**n for n in range(length))
            rate = (others + expected) / (others + 1) / (1 + loss)
            if rate > best_rate:
                best, best_rate = length, rate
            if length <= _TRIAL and grade in self._counts:
                trial = length  # what was tried speaks against it, and may have changed
        if best:
            return best
        self._is_trial = trial > 0
        self.num_plain += not trial
        return trial

    def worth_checking(
        self,
        chances: Sequence[float],
        *,
        check: Callable[[int], float | None],
        drafting: float,
        others: int = 0,
    ) -> list[int]:
        """Which tokens of a tree to check, in order: of the likeliest ones as many as make most
        tokens per second; all where `check(k)`, the seconds of a pass over k of them, is unknown.
        `drafting` are the seconds that were spent on them all, `others` is as for `choose`."""
        ranked = sorted(range(len(chances)), key=lambda place: -chances[place])
        best, best_rate, expected, before = len(ranked), 0.0, others + 1.0, 0
        for count in sorted({*_CANDIDATES, len(ranked)}):
            if count > len(ranked):
                break
            seconds = check(count)
            if seconds is None:
                best = len(ranked)
                break
            expected += sum(chances[place] for place in ranked[before:count])
            before = count
            if expected / (seconds + drafting) > best_rate:
                best, best_rate = count, expected / (seconds + drafting)
        self._checked += (best / len(ranked) - self._checked) / 2
        return sorted(ranked[:best])

    def num_checked(self, num_drafted: int) -> int:
        """How many of a draft's tokens a check is likely to hold."""
        return max(1, round(num_drafted * self._checked))

    def _earn(self, passes: float) -> None:
        self._funds = min(self._funds + passes, _SAVINGS)


def _chance(counts: tuple[float, float]) -> float:
    (accepted, tried), (value, weight) = counts, _DOUBT
    return (accepted + value * weight) / (tried + weight)
