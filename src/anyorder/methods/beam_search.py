"""Beam search: keep the `width` best partial texts, by summed log-probability.

Scores of finished texts are divided by length ** length_penalty. Several `groups` make it diverse
beam search (Vijayakumar et al., 2016, arXiv:1610.02424): groups choose one after the other, and a
token costs `diversity_penalty` for every beam of an earlier group that took it in the same step.
Candidates, finishing rules and early stopping are those of transformers' `generate`, so that equal
models give equal beams. It searches: temperature and truncation do not apply and are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    Decoding,
    ForwardRequest,
    ForwardResult,
    Outputs,
    forward,
    forward_all,
)
from anyorder.core.method import Context, Method
from anyorder.core.options import Range
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Method):
    """Keep the best-scoring partial texts and return the n best finished ones."""

    width: Annotated[int, Range(1, 64), "beams kept in every step, over all groups"] = 4
    length_penalty: Annotated[
        float, Range(-10, 10), "scores are divided by length to this power; >0 favours long texts"
    ] = 1.0
    early_stopping: Annotated[
        Literal["yes", "no", "never"],
        "yes: stop at `width` finished texts; no: when improvement is unlikely; never: impossible",
    ] = "no"
    groups: Annotated[int, Range(1, 64), "groups of beams that are pushed apart"] = 1
    diversity_penalty: Annotated[
        float, Range(0, 100), "cost of a token that an earlier group took in the same step"
    ] = 0.0

    makes_choices: ClassVar[bool] = True

    def check(self, request: Request) -> None:
        if self.width % self.groups:
            raise InvalidRequest(
                f"width must be a multiple of groups, got {self.width} and {self.groups}."
            )
        if (self.groups > 1) != (self.diversity_penalty > 0):
            raise InvalidRequest(
                "groups above 1 and diversity_penalty above 0 belong together, got "
                f"{self.groups} and {self.diversity_penalty:g}."
            )
        if request.n > self.width:
            raise InvalidRequest(f"n is {request.n}, but width {self.width} finds no more texts.")
        self.refuse_draws(request)

    def decode(self, context: Context) -> Decoding:
        size = self.width // self.groups
        ends = () if context.request.ignore_end else context.abilities.end_tokens
        # Enough candidates to go on with when the best ones end ...
        num_candidates = max(2, 1 + len(ends)) * size
        # ... and, in a group, when earlier groups made the best ones costly.
        best = num_candidates + self.width - size
        outputs = Outputs(token=False, logprob=False, best=best, top=context.request.logprobs)
        live = [context.sequence()]
        try:
            first = yield from forward(live[0], context.prompt, 0, outputs=outputs)
            groups = [
                _Group(size=size, beams=[_Beam(sequence=live[0])]) for _ in range(self.groups)
            ]
            for group in groups:
                group.beams[0].hear(first)
            position = len(context.prompt)
            while True:
                taken: Counter[int] = Counter()
                for group in groups:
                    if not group.done:
                        group.step(self, context, num_candidates, taken)
                beams = [beam for group in groups if not group.done for beam in group.beams]
                if not beams:
                    break
                past, live = live, []
                for beam in beams:
                    beam.sequence = beam.sequence.fork()
                    live.append(beam.sequence)
                for sequence in past:
                    sequence.close()
                results = yield from forward_all(
                    [
                        ForwardRequest(
                            sequence=beam.sequence,
                            tokens=beam.tokens[-1:],
                            start=position,
                            outputs=outputs,
                        )
                        for beam in beams
                    ]
                )
                for beam, result in zip(beams, results, strict=True):
                    beam.hear(result)
                position += 1
        finally:
            for sequence in live:
                sequence.close()
        finished = [beam for group in groups for beam in group.finished]
        finished.sort(key=lambda beam: -beam.score)
        for choice, beam in enumerate(finished[: context.request.n]):
            context.emit(
                beam.tokens,
                beam.logprobs,
                alternatives=beam.alternatives,
                choice=choice,
                score=beam.score,
            )


@dataclass(kw_only=True, eq=False)
class _Beam:
    """A partial text; once finished, `score` includes the length penalty."""

    sequence: Sequence
    """Where its tokens but the last are cached; shared with its parent until it is run."""
    best: list[tuple[int, float]] = field(default_factory=list)
    """(token, score) of its likeliest continuations."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: Seq[tuple[int, float]] = ()
    """What is reported beside its next token."""
    alternatives: list[Seq[tuple[int, float]]] = field(default_factory=list)
    """... and beside those it has."""
    score: float = 0.0

    def hear(self, result: ForwardResult) -> None:
        """Take what may follow it."""
        self.best = result.best[0]
        self.top = result.top[0] if result.top else ()


@dataclass(kw_only=True, eq=False)
class _Group:
    """Beams that compete with each other."""

    size: int
    beams: list[_Beam]
    finished: list[_Beam] = field(default_factory=list)
    done: bool = False

    def step(
        self, options: BeamSearch, context: Context, num_candidates: int, taken: Counter[int]
    ) -> None:
        """Extend every beam by one token, move finished texts aside, decide whether to go on."""
        candidates = [
            (beam.score + gain - options.diversity_penalty * taken[token], beam, token, gain)
            for beam in self.beams
            for token, gain in beam.best
            if gain > -math.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        self.beams = []
        for rank, (score, parent, token, gain) in enumerate(candidates[:num_candidates]):
            beam = _Beam(
                sequence=parent.sequence,
                tokens=[*parent.tokens, token],
                logprobs=[*parent.logprobs, gain],
                alternatives=[*parent.alternatives, parent.top],
                score=score,
            )
            if len(beam.tokens) == context.max_new_tokens or context.ends(beam.tokens):
                # Candidates beyond `size` are there to go on with, not to finish.
                if rank < self.size:
                    beam.score /= len(beam.tokens) ** options.length_penalty
                    self.finished.append(beam)
            elif len(self.beams) < self.size:
                self.beams.append(beam)
        taken.update(beam.tokens[-1] for beam in self.beams)
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[self.size :]
        self.done = not self.beams or not self._can_improve(options, context.max_new_tokens)

    def _can_improve(self, options: BeamSearch, max_new_tokens: int) -> bool:
        if len(self.finished) < self.size:
            return True
        if options.early_stopping == "yes":
            return False
        length = len(self.beams[0].tokens)
        if options.early_stopping == "never" and options.length_penalty > 0:
            length = max_new_tokens
        attainable: float = self.beams[0].score / length**options.length_penalty
        return attainable > self.finished[-1].score
