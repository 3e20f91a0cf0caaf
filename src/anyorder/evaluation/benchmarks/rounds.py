"""Rounds in which all sides take turns at every work, so that whatever else the machine does hits
all of them alike. Figures are kept round by round.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from anyorder.evaluation.benchmarks.process import Answer, Asked, WorkerDied
from anyorder.evaluation.benchmarks.sides import Side
from anyorder.evaluation.benchmarks.works import Call, Work, prompts

Start = Callable[[Side, Work | None], Asked]
"""For some work, where it makes a difference."""
Progress = Callable[[str, int, int], None]
"""Told (stage, how much is done, how much there is)."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of some rounds: figures by work and side, one a round, and what went wrong."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    """By work and side: why it has no figures, or no more."""

    @property
    def num_rounds(self) -> int:
        """Most figures that any side has for any work."""
        return max((len(v) for sides in self.values.values() for v in sides.values()), default=0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    sides: Seq[Side]
    works: Seq[Work]
    vocabulary: int
    copied: Seq[list[int]] = ()
    """Prompts whose answers copy from them, for works that do; four a round, then again from the
    first."""


def measure(plan: Plan, figures: Figures, start: Start, *, rounds: int, progress: Progress) -> None:
    """Add `rounds` rounds to the figures."""
    first = figures.num_rounds
    total = rounds * len(plan.works) * len(plan.sides)
    done = 0
    for number in range(first, first + rounds):
        turn = number % len(plan.sides)
        order = [*plan.sides[turn:], *plan.sides[:turn]]
        workers: dict[str, Asked] = {}
        try:
            for work in sorted(plan.works, key=lambda work: not work.fresh):
                for side in order:
                    progress(f"round {number + 1}, {work.name}: {side.name}", done, total)
                    done += 1
                    failures = figures.failures.setdefault(work.name, {})
                    if side.name in failures or not work.takes(side):
                        continue
                    if work.shape is not None and side.name in workers:
                        workers.pop(side.name).close()
                    if side.name not in workers:
                        workers[side.name] = start(side, work)
                    try:
                        figure = _figure(plan, work, side, workers[side.name], number)
                    except WorkerDied as error:
                        failures[side.name] = str(error)
                        workers.pop(side.name).close()
                        continue
                    kept = figures.values.setdefault(work.name, {})
                    kept.setdefault(side.name, []).append(figure)
                    if work.shape is not None:  # no other work is about that network
                        workers.pop(side.name).close()
        finally:
            for worker in workers.values():
                worker.close()
    progress("rounds", total, total)


def _figure(plan: Plan, work: Work, side: Side, worker: Asked, number: int) -> float:
    def ask(call: Call, what: str, *, lookup: bool = False) -> Answer:
        seed = f"{work.name} {number} {what}"
        vocabulary = plan.vocabulary if work.shape is None else work.shape.vocabulary
        asked = prompts(call, vocabulary=vocabulary, seed=seed)
        if work.copies:
            # Another text every time: a prompt seen before would be in prefix caches.
            place = 4 * number + 2 * lookup + (what == "warm-up")
            asked = [plan.copied[place % len(plan.copied)]]
        return worker.generate(asked, call.num_new, lookup=lookup)

    answers = []
    for lookup in (False, True) if work.copies and side.looks_up else (False,):
        if work.warm_up is not None:
            ask(work.warm_up, "warm-up", lookup=lookup)
        calls = enumerate(work.calls)
        answers += [ask(call, str(index), lookup=lookup) for index, call in calls]
    return work.figure(answers)
