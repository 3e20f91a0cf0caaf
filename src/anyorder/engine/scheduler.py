"""Which tokens run in the next pass: admission, token budget, chunks, sharing, preemption.

There is no prefill and no decode here, only forward requests with tokens still to run. Long causal
requests are run in chunks. When pages run out, the latest run loses its pages, waits, and is
replayed; its generator stays suspended and never knows.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from anyorder.cache.allocator import OutOfPages
from anyorder.cache.store import PagedStore, beginning
from anyorder.core.attention import CAUSAL, Attention
from anyorder.core.errors import PoolTooSmall
from anyorder.core.forward import (
    ForwardRequest,
)
from anyorder.core.sequence import Sequence
from anyorder.engine.run import Job, Run

SMALL = 16
"""Requests of at most so many tokens are never kept waiting by longer ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Part of a job that runs in one pass. Pages for it are reserved."""

    job: Job
    tokens: Seq[int]
    start: int
    attention: Attention
    replay: bool
    rows: list[int]
    """Offsets into `tokens` that need output."""

    @property
    def layers(self) -> int | None:
        """How many layers to run; a replay may run more than it must."""
        return None if self.replay else self.job.request.layers


class Scheduler:
    """Waiting and running runs, first come first served."""

    def __init__(
        self,
        stores: dict[str, PagedStore],
        *,
        max_batch_tokens: int,
        max_running: int,
        on_failure: Callable[[Run, Exception], None],
    ) -> None:
        self._stores = stores
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._on_failure = on_failure
        self.waiting: deque[Run] = deque()
        self.running: list[Run] = []

    @property
    def is_idle(self) -> bool:
        """Is there nothing to do?"""
        return not self.waiting and not self.running

    def add(self, run: Run) -> None:
        """Queue a new run."""
        self.waiting.append(run)

    def remove(self, run: Run) -> None:
        """Forget a run that has ended."""
        if run in self.running:
            self.running.remove(run)
        elif run in self.waiting:
            self.waiting.remove(run)

    def select(self, shift: int | None = None) -> list[Piece]:
        """The pieces of the next passes (one a role), with their pages reserved; of every second
        run, with a `shift` of 0 or 1."""
        tick = _Tick(budget=self._max_batch_tokens)
        chosen = [run for run in self.running if _has_turn(run, shift)]
        tick.small = sum(
            job.num_remaining for run in chosen for job in run.jobs if job.num_remaining <= SMALL
        )
        for run in chosen:
            if run in self.running:  # an earlier one may just have preempted it
                self._select_run(run, tick)
        while self.waiting and tick.budget > 0 and len(self.running) < self._max_running:
            run = self.waiting[0]
            if self.running and not self._has_room(run):
                break
            self.waiting.popleft()
            if self._admit(run) and _has_turn(run, shift):
                self._select_run(run, tick)
        return tick.pieces

    # ---------------------------------------------------------------------------------- admission
    def _has_room(self, run: Run) -> bool:
        needed = run.pages_needed
        if not needed:
            lengths = {"target": len(run.prompt) + 1}
            if run.prepared.source:
                lengths["encoder"] = len(run.prepared.source)
            needed = {role: self._stores[role].pages_for(n) for role, n in lengths.items()}
        return all(self._stores[role].num_available >= n for role, n in needed.items())

    def _admit(self, run: Run) -> bool:
        bisect.insort(self.running, run, key=lambda other: other.arrival)
        if run.handle.admitted_at is None:
            run.handle.admitted_at = time.perf_counter()
        if run.generator is None:
            try:
                run.start()
            except Exception as error:
                self._on_failure(run, error)
                return False
        return True

    # -------------------------------------------------------------------------------------- pieces
    def _select_run(self, run: Run, tick: _Tick) -> None:
        replaying = False
        for job in run.jobs:
            # A job with nothing left to run may still wait for its unconditional twin.
            is_behind = job.sequence.num_resident < job.sequence.length
            if not job.num_remaining or (replaying and is_behind):
                continue
            if tick.budget <= 0:
                return
            memory = job.sequence.memory
            if memory is not None and memory.num_resident < memory.length:
                piece = self._encode(run, memory, tick)
            else:
                piece = self._next_piece(job, tick)
            if piece is None:
                continue
            # Siblings replay one after the other, so that they find each other's pages again.
            replaying = replaying or piece.replay
            if not self._reserve(piece, tick):
                return
            tick.add(piece)

    def _next_piece(self, job: Job, tick: _Tick) -> Piece | None:
        sequence = job.sequence
        if sequence.num_resident == 0 and not self._share_prefix(job, tick):
            return None
        if sequence.num_resident < sequence.length:
            return _replay(job, tick)
        num_remaining = job.num_remaining
        others = max(0, tick.small - (num_remaining if num_remaining <= SMALL else 0))
        take = _largest_part(job, max(tick.budget - others, min(tick.budget, SMALL)))
        if take == 0:
            if tick.pieces:
                return None
            take = num_remaining  # it cannot be split and will never fit better than alone
        tokens = job.request.tokens[job.num_done : job.num_done + take]
        first, last = job.num_done, job.num_done + take
        return Piece(
            job=job,
            tokens=tokens,
            start=job.request.start + first,
            attention=job.request.attention,
            replay=False,
            rows=[row - first for row in job.request.output_rows if first <= row < last],
        )

    def _encode(self, run: Run, memory: Sequence, tick: _Tick) -> Piece | None:
        """What an encoder's sequence lacks, for the first time or after preemption. None: wait a
        tick, somebody is computing it, or it was found in the cache."""
        store = self._stores[memory.role]
        keys = store.keys(memory.tokens, memory.salt)
        if keys[0] in tick.in_flight:
            return None
        if memory.num_resident == 0:
            num_cached = store.attach(memory, memory.tokens, keys, memory.length)
            if num_cached:
                if run.handle.answered_at is None:
                    run.handle.num_cached_tokens += num_cached
                return None
        request = ForwardRequest(sequence=memory, tokens=memory.tokens, start=0, rows=())
        return _replay(Job(run=run, request=request, page_keys=keys), tick)

    def _share_prefix(self, job: Job, tick: _Tick) -> bool:
        """Start an empty sequence with cached pages; False: wait, somebody is computing them."""
        sequence, store = job.sequence, self._stores[job.sequence.role]
        if sequence.length:
            tokens: Seq[int] = sequence.tokens
            attention, limit = beginning(sequence)
            limit = 0 if sequence.conditions else limit
            keys = store.keys(tokens, sequence.salt, attention)
        elif job.request.attention.settled(len(job.request.tokens)) and job.request.reads_prefixes:
            tokens, attention = job.request.tokens, job.request.attention
            # Rows that need output must run, and at least one token.
            limit = min([*job.request.output_rows[:1], len(tokens) - 1])
            if job.page_keys is None:
                job.page_keys = store.keys(tokens, sequence.salt, attention)
            keys = job.page_keys
        else:
            return True
        fresh, limit = not sequence.length, attention.settled(limit)
        num_cached = store.attach(sequence, tokens, keys, limit, attention)
        num_pages = len(sequence.pages)
        if keys[num_pages : limit // store.page_size] and keys[num_pages] in tick.in_flight:
            store.discard(sequence, 0) if fresh else store.drop(sequence)
            return False
        tick.in_flight.update(keys)
        if fresh:
            job.num_done = num_cached
            if not job.is_twin:
                job.run.handle.num_cached_tokens += num_cached
        return True

    # ----------------------------------------------------------------------------------- memory
    def _reserve(self, piece: Piece, tick: _Tick) -> bool:
        """Reserve the piece's pages, preempting the latest run if need be."""
        run, sequence = piece.job.run, piece.job.sequence
        store = self._stores[sequence.role]
        while True:
            try:
                store.reserve(sequence, piece.start + len(piece.tokens))
                return True
            except OutOfPages:
                latest = self.running[-1]
                if latest is not run and latest not in tick.runs:
                    self._preempt(latest)
                elif run in tick.runs:
                    return False  # its other pieces run first; nothing is lost by waiting a tick
                elif len(self.running) > 1:
                    self._preempt(run)
                    return False
                else:
                    self._on_failure(run, _too_small(run, store))
                    return False

    def _preempt(self, run: Run) -> None:
        pages = {(sequence.role, page) for sequence in run.family for page in sequence.pages}
        needed = Counter(role for role, _ in pages)
        needed.update(job.sequence.role for job in run.jobs)
        run.pages_needed = needed
        for sequence in run.family:
            self._stores[sequence.role].drop(sequence)
        run.handle.num_preemptions += 1
        self.running.remove(run)
        self.waiting.appendleft(run)


@dataclass(kw_only=True, eq=False)
class _Tick:
    """What has been decided so far for the next passes."""

    budget: int
    pieces: list[Piece] = field(default_factory=list)
    runs: set[Run] = field(default_factory=set)
    """Whose pieces they are."""
    in_flight: set[bytes] = field(default_factory=set)
    """Keys of pages that are being computed."""
    small: int = 0
    """Tokens of small requests that are still to be selected."""

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.runs.add(piece.job.run)
        self.budget -= len(piece.tokens)
        if not piece.replay and piece.job.num_remaining <= SMALL:
            self.small = max(0, self.small - len(piece.tokens))
        if piece.job.page_keys is not None:
            self.in_flight.update(piece.job.page_keys)


def _has_turn(run: Run, shift: int | None) -> bool:
    return shift is None or run.arrival % 2 == shift


def _largest_part(job: Job, budget: int) -> int:
    """How many of the job's remaining tokens may run within `budget`."""
    num_remaining, attention = job.num_remaining, job.request.attention
    if num_remaining <= budget:
        return num_remaining
    for take in range(budget, 0, -1):
        if attention.can_split_at(job.num_done + take):
            return take
    return 0


def _replay(job: Job, tick: _Tick) -> Piece:
    """The next tokens of a sequence that lost its pages, run as they were run first."""
    sequence: Sequence = job.sequence
    start = sequence.num_resident
    span = next((span for span in sequence.spans if span.end > start), None)
    attention: Attention = CAUSAL
    if span is not None and span.start <= start:
        attention, done = span.attention, start - span.start
        rest = span.length - done
        fitting = (n for n in range(tick.budget, 0, -1) if attention.can_split_at(done + n))
        take = rest if rest <= tick.budget else next(fitting, rest)
        end = span.start + done + take
        tokens: Seq[int] = sequence.tokens[start : min(end, span.end)]
        tokens = [*tokens, *span.cut[: max(0, end - span.end)]]
    else:
        end = sequence.length if span is None else span.start
        tokens = sequence.tokens[start : min(end, start + tick.budget)]
    return Piece(job=job, tokens=tokens, start=start, attention=attention, replay=True, rows=[])


def _too_small(run: Run, store: PagedStore) -> PoolTooSmall:
    num_tokens = store.num_pages * store.page_size
    return PoolTooSmall(
        f"the request needs more cache than there is: {run.request.method} over a prompt of "
        f"{len(run.prompt)} tokens does not fit {num_tokens} positions; raise cache_tokens or ask "
        "for less."
    )
