"""The loop of masked diffusion over some places of a canvas: ask, take back, commit, repeat.

Which pass answers is the caller's business (whole canvases, blocks with a cached past); which
places become final is that of the commit and revision policies. Everything here is bookkeeping of a
few numbers a place.

A place behind an end token is irrelevant and left open. Steps that change nothing cost no pass: the
network would be asked the same.

Places may be filled ahead, while others before them are open. Nothing is due there until those are
filled: the schedule waits, and only what a policy takes by itself is taken.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import ForwardRequest, ForwardResult, Outputs
from anyorder.core.method import Context
from anyorder.sampling.revision import Revision
from anyorder.sampling.unmasking import Candidate, Commit, Schedule, Step

EndOrder = Literal["any", "last"]
"""When end tokens are placed: like others, or where a step has nothing else left to place."""
Passes = Generator[list[ForwardRequest], list[ForwardResult], list[Candidate]]
Ask = Callable[[list[int], Outputs, str | None], Passes]
"""Run a pass that tells these places, with these outputs and this stream of random numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is asked before the next step."""

    places: list[int]
    outputs: Outputs
    stream: str | None
    """Of random numbers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a pass said of a question's places."""

    candidates: list[Candidate]
    ahead: bool = False
    """Was something open before them that they saw?"""


Questions = Generator[Question, Answer, None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to fill places."""

    commit: Commit
    revise: Revision
    schedule: Schedule
    steps: int | None
    """None: as few as the commit policy needs when one place a step is due."""
    processed: bool = False
    """Do policies look at the processed distribution?"""
    ends: EndOrder = "any"

    @property
    def is_exact(self) -> bool:
        """Does it draw from the model's own distribution, by the chain rule in some order?"""
        looks = self.ends != "any" or not self.commit.blind
        return not looks and self.steps is None and not self.revise.revises

    def outputs(self, top: int) -> Outputs:
        """What the policies read."""
        commit = self.commit
        return Outputs(
            entropy=commit.reads_entropy,
            margin=commit.reads_margin,
            processed=self.processed,
            top=top,
        )

    def step(self, number: int, num_open: int, num_standing: int) -> Step:
        """The step of this number, with so many places open and so many filled on the way."""
        if self.steps is None:
            return Step(before=1.0, after=1.0 if num_open > 1 else 0.0, due=1)
        before, after = (
            self.revise.open_share(self.schedule, min(1.0, (number + ahead) / self.steps))
            for ahead in (0, 1)
        )
        if not self.revise.revises:
            share = Step(before=before, after=after, due=0).share
            late = self.schedule == "late"
            due = math.floor(num_open * share) if late else math.ceil(num_open * share - 1e-9)
        else:
            due = num_open - math.floor((num_open + num_standing) * after + 1e-9)
        least = 0 if self.schedule == "late" and after > 0 else 1
        step = Step(before=before, after=after, due=max(least, min(due, num_open)))
        return dataclasses.replace(step, rate=self.revise.rate(step))


def check_plan(plan: Plan) -> None:
    """InvalidRequest where policies make no sense without a number of steps."""
    for policy in (plan.commit, plan.revise):
        if policy.needs_steps and plan.steps is None:
            raise InvalidRequest(
                f"{lookup.name_of(policy)} needs a number of steps; set the option steps."
            )


def following(questions: Questions, answer: Answer) -> Question | None:
    """What is asked next, None if nothing is."""
    try:
        return questions.send(answer)
    except StopIteration:
        return None


def candidates(places: Seq[int], result: ForwardResult) -> list[Candidate]:
    """A pass's answers, one a place."""
    nothing = [0.0] * len(places)
    return [
        Candidate(
            place=place,
            token=result.tokens[row],
            logprob=result.logprobs[row],
            entropy=(result.entropies or nothing)[row],
            margin=(result.margins or nothing)[row],
            alternatives=result.top[row] if result.top else (),
            confidence=result.confidences[row] if result.confidences else None,
        )
        for row, place in enumerate(places)
    ]


class Ends:
    """Which tokens end any text. One that is complete by a guide may end by others, which end no
    other text."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        """Does it end any text?"""
        if token not in self._known:
            request, abilities = self._context.request, self._context.abilities
            self._known[token] = (
                self._context.ends([token])
                if request.guide is None
                else token in abilities.end_tokens or token in request.stop_tokens
            )
        return self._known[token]


class Denoising:
    """Some places of a canvas on their way from open to final."""

    def __init__(
        self, context: Context, text: list[int | None], places: Seq[int], plan: Plan
    ) -> None:
        self._context = context
        self._text = text
        """The whole canvas; filled in place."""
        self._places = places
        self._plan = plan
        self._standing: dict[int, Candidate] = {}
        """What was placed here."""
        self._ends = Ends(context)

    def run(self, ask: Ask) -> Generator[list[ForwardRequest], list[ForwardResult], None]:
        """Fill the places, until none is left or the text is over."""
        questions = self.questions()
        question = next(questions, None)
        while question is not None:
            found = yield from ask(question.places, question.outputs, question.stream)
            question = following(questions, Answer(candidates=found))

    def questions(self) -> Questions:
        """The same, for passes that the caller runs."""
        plan, context = self._plan, self._context
        revise = plan.revise
        outputs = plan.outputs(context.request.logprobs)
        answers: dict[int, Candidate] = {}
        num_full = num_waited = 0
        ahead = False
        for number in itertools.count():
            open_places, filled = self._relevant()
            if context.finished:
                break
            if not open_places:
                if not filled or not revise.goes_on(number, plan.steps, num_full):
                    break
                num_full += 1
            asked = [*open_places, *(filled if revise.rereads else ())]
            if asked and not answers:
                stream = None if number == 0 else f"step {number}"
                answer = yield Question(places=asked, outputs=outputs, stream=stream)
                answers = {candidate.place: candidate for candidate in answer.candidates}
                ahead = answer.ahead
            step = plan.step(number - num_waited, len(open_places), len(filled))
            if ahead:
                num_waited += 1
                step = Step(before=step.before, after=step.before, due=0)
            changed = self._reopen(filled, step, number)
            taken = self._edits(filled, answers)
            found = [answers[place] for place in open_places]
            if plan.commit.reads_chance:
                found = [self._roll("commit", number, candidate) for candidate in found]
            taken += self._choose(found, step)
            changed |= self._place(taken)
            if changed or ahead:
                answers = {}
            elif revise.rereads and not open_places:
                break
        if revise.revises:
            self._make_final([self._standing[place] for place in sorted(self._standing)])

    def _relevant(self) -> tuple[list[int], list[int]]:
        """Places still open and places filled here, up to the first end of the text."""
        open_places, filled = list[int](), list[int]()
        for place in self._places:
            token = self._text[place]
            if token is None:
                open_places.append(place)
                continue
            if place in self._standing:
                filled.append(place)
            if self._ends(token):
                break
        return open_places, filled

    def _roll(self, name: str, number: int, candidate: Candidate) -> Candidate:
        """The candidate with a random number of its own."""
        chance = self._context.chance(name, number, candidate.place)
        return dataclasses.replace(candidate, chance=chance)

    def _choose(self, candidates: list[Candidate], step: Step) -> list[Candidate]:
        """What the policy takes; with end tokens last, of them only what is due besides, where it
        took all others."""
        commit = self._plan.commit
        if self._plan.ends == "any":
            return [candidates[index] for index in commit.choose(candidates, step)]
        ends = [candidate for candidate in candidates if self._ends(candidate.token)]
        others = [candidate for candidate in candidates if not self._ends(candidate.token)]
        taken = [others[index] for index in commit.choose(others, step)]
        if len(taken) == len(others) and step.due > len(taken):
            rest = dataclasses.replace(step, due=step.due - len(taken))
            taken += [ends[index] for index in commit.choose(ends, rest)][: rest.due]
        return taken

    def _reopen(self, filled: list[int], step: Step, number: int) -> bool:
        """Take back what the policy wants back; did it want anything?"""
        if not self._plan.revise.revises:
            return False
        standing = [self._roll("revise", number, self._standing[place]) for place in filled]
        places = [filled[index] for index in self._plan.revise.reopen(standing, step)]
        for place in places:
            self._text[place] = None
            del self._standing[place]
        self._context.preview(places, [None] * len(places))
        return bool(places)

    def _edits(self, filled: list[int], answers: dict[int, Candidate]) -> list[Candidate]:
        """New tokens for filled places."""
        if not self._plan.revise.rereads:
            return []
        standing = [self._standing[place] for place in filled]
        fresh = [answers[place] for place in filled]
        return [fresh[index] for index in self._plan.revise.replace(standing, fresh)]

    def _place(self, taken: list[Candidate]) -> bool:
        """Put tokens on the canvas; was there any?"""
        places = [candidate.place for candidate in taken]
        tokens = [candidate.token for candidate in taken]
        kept = [taken[index] for index in self._context.compatible(self._text, places, tokens)]
        assert kept or not taken, "what was told of a canvas as it is may stand on it"
        for candidate in kept:
            self._text[candidate.place] = candidate.token
            self._standing[candidate.place] = candidate
        if self._plan.revise.revises:
            self._context.preview([c.place for c in kept], [c.token for c in kept])
        else:
            self._make_final(kept)
        return bool(kept)

    def _make_final(self, found: list[Candidate]) -> None:
        self._context.reveal(
            [candidate.place for candidate in found],
            [candidate.token for candidate in found],
            [candidate.logprob for candidate in found],
            alternatives=[candidate.alternatives for candidate in found],
        )
