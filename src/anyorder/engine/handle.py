"""A request on its way through the engine: what it was validated to, its events and its answer."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from anyorder.core.method import Method
from anyorder.core.request import Completion, Event, Report, Request
from anyorder.engine.text import ChoiceBuilder, EndRules


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A validated request with everything looked up that running it needs."""

    request: Request
    method: Method
    prompt: list[int]
    """What the decoder's text begins with; behind an encoder, its start tokens."""
    negative_prompt: list[int] | None
    source: tuple[int, ...]
    """What the user gave, where an encoder reads it; empty without one."""
    negative_source: tuple[int, ...]
    max_new_tokens: int
    canvas: tuple[int | None, ...] | None
    end_tokens: frozenset[int]
    banned: tuple[tuple[int, ...], ...]
    salt: str

    @property
    def given(self) -> list[int]:
        """The user's prompt."""
        return list(self.source) or self.prompt

    def is_fixed_behind(self, place: int) -> bool:
        """Does the canvas fix a token behind this place?"""
        return self.canvas is not None and any(t is not None for t in self.canvas[place + 1 :])

    @property
    def num_runs(self) -> int:
        """Generators it takes: one for all choices, or one each."""
        return 1 if self.method.makes_choices else self.request.n


class Handle:
    """One submitted request: its events as they come, its completion at the end."""

    def __init__(self, prepared: Prepared, rules: Seq[EndRules]) -> None:
        self.prepared = prepared
        self.events: deque[Event] = deque()
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self.num_passes = 0
        self.num_run_tokens = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.passes_by_role: Counter[str] = Counter()
        self.num_checks = 0
        self.num_checked = 0
        """Tokens that draft checks let stay or added."""
        self.notes: list[str] = []
        self.private: dict[str, Any] = {}
        """`Context.shared` for a request that shares nothing."""
        self.prompt_logprobs: list[float] | None = None
        self.prompt_alternatives: list[tuple[tuple[int, float], ...]] | None = None
        self.embedding: list[float] | None = None
        canvas = prepared.canvas or ()
        self.choices = [
            ChoiceBuilder(rules[i % len(rules)], canvas) for i in range(prepared.request.n)
        ]
        self.submitted_at = time.perf_counter()
        self.admitted_at: float | None = None
        self.answered_at: float | None = None

    @property
    def done(self) -> bool:
        """Is there a completion or an error?"""
        return self.completion is not None or self.error is not None

    def result(self) -> Completion:
        """The completion; raises what made the request fail."""
        if self.error is not None:
            raise self.error
        assert self.completion is not None, "the request is still running"
        return self.completion

    def finish(self) -> None:
        """All runs have ended: build the completion."""
        ended = time.perf_counter()
        admitted = ended if self.admitted_at is None else self.admitted_at
        answered = ended if self.answered_at is None else self.answered_at
        prepared = self.prepared
        num_new = sum(len(choice.tokens) for choice in self.choices)
        self.completion = Completion(
            choices=tuple(c.build() for c in self.choices if c.finish_reason is not None),
            method=prepared.request.method,
            report=Report(
                num_prompt_tokens=len(prepared.given),
                num_new_tokens=num_new,
                num_forward_passes=self.num_passes,
                tokens_per_pass=num_new / max(self.num_passes, 1),
                num_cached_tokens=self.num_cached_tokens,
                queue_seconds=admitted - self.submitted_at,
                prefill_seconds=answered - admitted,
                decode_seconds=ended - answered,
                num_run_tokens=self.num_run_tokens,
                num_preemptions=self.num_preemptions,
                mean_accepted_length=self.num_checked / self.num_checks
                if self.num_checks
                else None,
                passes_by_role=dict(self.passes_by_role),
                exact=prepared.method.keeps_distribution,
                notes=tuple(self.notes),
            ),
            prompt_tokens=prepared.given,
            prompt_logprobs=self.prompt_logprobs,
            prompt_alternatives=self.prompt_alternatives,
            embedding=self.embedding,
        )
        self.events.append(Event(completion=self.completion))
