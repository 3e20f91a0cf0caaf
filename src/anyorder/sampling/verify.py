"""Draft checks: which proposed tokens stay, and what is drawn after them.

`match`: a token is drawn at each place as plain decoding would, with the same random number,
and a proposal stays if it is that token (greedy checking, at temperature 0). The text is therefore
the one that plain decoding writes, whatever was proposed.

`ratio`: a proposal x drawn from q stays with probability min(1, p(x) / q(x)), and after a rejection
p becomes norm(max(p - q, 0)) (Leviathan et al., 2023, arXiv:2211.17192; Chen et al., 2023,
arXiv:2302.01318). Siblings are tried in order, each against what the one before left of p: that is
multi-round sampling of i.i.d. trees (SpecInfer, arXiv:2305.09781) and, where a proposal was chosen
and not drawn, so that its q is 1, the rule for deterministic trees (EAGLE-2, arXiv:2406.16858). The
distribution is p's; the text depends on the proposals too.

`typical`: a proposal stays if p(x) > min(epsilon, delta * exp(-entropy of p)); the longest path,
the likeliest among equals, wins (Medusa, arXiv:2401.10774). The distribution is *not* p's.

p is the target's processed distribution: after guidance, penalties, bans, temperature, truncation.
Places are offsets into the request's tokens. Only the places on the accepted path (and, for
`typical`, on paths that might be) are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from anyorder.core.forward import Check, Outputs, Verdict
from anyorder.sampling.draws import draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anyorder.sampling.row import RowResult

_DISTRIBUTION = Outputs(token=False, logprob=False, distribution=True)


class Judge(Protocol):
    """The target's answers at the places of a draft."""

    def answer(self, place: int, outputs: Outputs, given: int | None = None) -> RowResult:
        """What the sampler says of one place."""

    def uniform(self, place: int, purpose: str, order: int = 0) -> float:
        """A random number for one decision at one place."""

    def ends(self, token: int) -> bool:
        """Is the text over with this token?"""


class CannotAnswer(Exception):
    """The first place has no answer; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """The accepted path, and the token after it if that is settled already."""

    accepted: list[int]
    after: int | None
    problem: str | None = None
    answers: list[RowResult] = field(default_factory=list)
    """The sampler's answers along the path, where they describe the tokens already."""


def verify(
    check: Check, tokens: Seq[int], parents: Seq[int], judge: Judge, *, greedy: bool, top: int
) -> Verdict:
    """Decide one draft. `parents` are those of all the request's tokens; a proposal's may be the
    last token of text, `check.first` - 1. CannotAnswer if not even one token can be drawn."""
    children: dict[int, list[int]] = {}
    for place in range(check.first, len(tokens)):
        children.setdefault(max(parents[place], check.first - 1), []).append(place)
    if greedy or check.rule == "match":
        walk = _match(check, tokens, children, judge, top)
    elif check.rule == "ratio":
        walk = _ratio(check, tokens, children, judge)
    else:
        walk = _typical(check, tokens, children, judge)
    if walk.problem is not None and not walk.accepted:
        raise CannotAnswer(walk.problem)
    made = [tokens[place] for place in walk.accepted]
    if walk.after is not None:
        made.append(walk.after)
    logprobs, alternatives = [], []
    places = [check.first - 1, *walk.accepted]
    describe = Outputs(token=False, logprob=False, top=top)
    answers = walk.answers or [
        judge.answer(place, describe, given=token)
        for place, token in zip(places, made, strict=False)
    ]
    for result in answers:
        logprob = result.logprob if walk.answers else result.given
        assert logprob is not None, result.error
        logprobs.append(logprob)
        alternatives.append(result.top)
    return Verdict(
        accepted=walk.accepted, last=places[-1], tokens=made, logprobs=logprobs, top=alternatives
    )


def _match(
    check: Check, tokens: Seq[int], children: Mapping[int, list[int]], judge: Judge, top: int
) -> _Walk:
    accepted: list[int] = []
    answers: list[RowResult] = []
    place = check.first - 1
    while True:
        result = judge.answer(place, Outputs(top=top))
        if result.token is None:
            return _Walk(accepted=accepted, after=None, problem=result.error, answers=answers)
        answers.append(result)
        drawn = result.token
        place = next((c for c in children.get(place, ()) if tokens[c] == drawn), -1)
        if place < 0 or judge.ends(drawn):
            return _Walk(accepted=accepted, after=drawn, answers=answers)
        accepted.append(place)


def _ratio(
    check: Check, tokens: Seq[int], children: Mapping[int, list[int]], judge: Judge
) -> _Walk:
    accepted: list[int] = []
    place = check.first - 1
    while True:
        result = judge.answer(place, _DISTRIBUTION)
        if result.distribution is None:
            return _Walk(accepted=accepted, after=None, problem=result.error)
        target_V: NDArray[np.float64] = result.distribution
        chosen = None
        for order, child in enumerate(children.get(place, ())):
            token = tokens[child]
            proposal_V = check.proposals[child - check.first] if check.proposals else None
            proposed = 1.0 if proposal_V is None else proposal_V[token]
            if judge.uniform(place, "accept", order) * proposed < target_V[token]:
                chosen = child
                break
            target_V = _rest(target_V, token, proposal_V)
        if chosen is None:
            after = draw(target_V, judge.uniform(place, "residual"))
            return _Walk(accepted=accepted, after=after)
        if judge.ends(tokens[chosen]):
            return _Walk(accepted=accepted, after=tokens[chosen])
        accepted.append(chosen)
        place = chosen


def _rest(
    target_V: NDArray[np.float64], token: int, proposal_V: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """What remains of the target's distribution after a rejection."""
    if proposal_V is None:
        rest_V = target_V.copy()
        rest_V[token] = 0.0
    else:
        rest_V = np.maximum(target_V - proposal_V, 0.0)
    total = rest_V.sum()
    # Nothing remains only where rounding rejected what has probability 1.
    return rest_V / total if total > 0 else target_V


def _typical(
    check: Check, tokens: Seq[int], children: Mapping[int, list[int]], judge: Judge
) -> _Walk:
    best: tuple[int, float, list[int]] = (0, 0.0, [])
    distributions: dict[int, NDArray[np.float64]] = {}
    pending: list[tuple[int, float, list[int]]] = [(check.first - 1, 0.0, [])]
    while pending:
        place, likelihood, path = pending.pop()
        result = judge.answer(place, _DISTRIBUTION)
        if result.distribution is None:
            if not path:
                return _Walk(accepted=[], after=None, problem=result.error)
            continue
        target_V = distributions[place] = result.distribution
        if (len(path), likelihood) > best[:2] or not path:
            best = len(path), likelihood, path
        likely_V = target_V[target_V > 0]
        entropy = -float((likely_V * np.log(likely_V)).sum())
        enough = min(check.epsilon, check.delta * math.exp(-entropy))
        if path and judge.ends(tokens[path[-1]]):
            continue
        for child in children.get(place, ()):
            probability = float(target_V[tokens[child]])
            if probability > enough:
                pending.append((child, likelihood + math.log(probability), [*path, child]))
    accepted = best[2]
    last = accepted[-1] if accepted else check.first - 1
    after = draw(distributions[last], judge.uniform(last, "residual"))
    return _Walk(accepted=accepted, after=after)


def dense(ids: Any, weights: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Probabilities over the whole vocabulary from some ids' (None: all ids') weights."""
    total = weights.sum()
    if ids is None:
        return weights / total  # type: ignore[no-any-return]
    full_V = np.zeros(size)
    full_V[ids] = weights / total
    return full_V
