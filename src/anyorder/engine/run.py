"""A request while it runs.

One `Run` (one generator) per choice (or one for all choices, for methods that make them all), one
`Job` per forward request that waits for its pass.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.errors import RequestFailed
from anyorder.core.forward import (
    NO_TOKEN,
    Decoding,
    ForwardRequest,
    ForwardResult,
    Verdict,
)
from anyorder.core.method import Abilities
from anyorder.core.request import Event, Request
from anyorder.core.sequence import Sequence
from anyorder.engine.costs import PassCosts
from anyorder.engine.guidance import unconditional
from anyorder.engine.handle import Handle
from anyorder.engine.history import History
from anyorder.engine.memory import Memory
from anyorder.engine.roles import Role
from anyorder.engine.text import ChoiceBuilder, EndRules, Final
from anyorder.sampling.canvas_guide import CanvasGuide
from anyorder.sampling.draws import uniform
from anyorder.sampling.guide import GuideState
from anyorder.sampling.sampler import RowResult
from anyorder.sampling.windows import compatible


@dataclass(eq=False, kw_only=True)
class Job:
    """One forward request waiting for its pass, perhaps in several chunks."""

    run: Run
    request: ForwardRequest
    num_done: int = 0
    """Tokens of the request that have been run."""
    rows: dict[int, RowResult] = field(default_factory=dict)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    page_keys: list[bytes] | None = None
    """Content keys of a prompt's pages, for prefix sharing."""
    twin: Job | None = None
    """The job, without the prompt or of another model, whose logits this one's are contrasted
    with."""
    is_twin: bool = False
    first_contrasted_row: int = 0
    """Rows from here on draw from contrasted logits, if there is a twin."""
    row_shift: int = 0
    """On a twin: its row i belongs to row i - row_shift of the other job."""
    held: dict[int, torch.Tensor] = field(default_factory=dict)
    """Logits of rows, by the row of the contrasted job, that wait for their counterpart or for the
    rest of a draft."""
    features: list[torch.Tensor] = field(default_factory=list)
    """Of one chunk of tokens after the other."""
    heads: dict[int, list[list[tuple[int, float]]]] = field(default_factory=dict)
    links: torch.Tensor | None = None
    beliefs: dict[int, tuple[float, torch.Tensor]] = field(default_factory=dict)
    """Entropy and mean embedding, by row."""
    verdict: Verdict | None = None

    @property
    def sequence(self) -> Sequence:
        """Where it runs."""
        return self.request.sequence

    @cached_property
    def canvas_history(self) -> Seq[int]:
        """The prompt and all that stands on the canvas."""
        assert self.request.canvas is not None
        text = self.request.canvas.text
        return History(lambda: [*self.run.prompt, *(t for t in text if t is not None)])

    @cached_property
    def row_order(self) -> dict[int, int]:
        """Which output row (0, 1, ...) an offset into the request's tokens is."""
        return {row: order for order, row in enumerate(self.request.output_rows)}

    @cached_property
    def depths(self) -> Seq[int]:
        """Positions of the request's tokens, from its start."""
        return self.request.attention.depths(len(self.request.tokens))

    @cached_property
    def parents(self) -> Seq[int]:
        """See `Attention.parents_of`."""
        return self.request.attention.parents_of(len(self.request.tokens))

    @property
    def num_remaining(self) -> int:
        """Tokens still to run, replays aside."""
        return len(self.request.tokens) - self.num_done

    @property
    def is_complete(self) -> bool:
        """Are all tokens run and all rows answered?"""
        if self.num_remaining or self.is_twin:
            return not self.num_remaining
        if self.request.outputs.accepted is not None:
            return self.verdict is not None
        return len(self.rows) == len(self.request.output_rows)

    def result(self) -> ForwardResult:
        """The answers in the order of the request's rows."""
        rows, wants = self.request.output_rows, self.request.outputs
        checks = wants.accepted is not None
        if checks and not wants.token:
            rows = ()
        answers = [self.rows[row] for row in rows]
        for answer in answers:
            # What follows a wrong proposal may have no answer, and need none.
            if answer.error is not None and not checks:
                raise RequestFailed(answer.error)
        tokens = [NO_TOKEN if a.token is None else a.token for a in answers]
        return ForwardResult(
            tokens=tokens if wants.token else [],
            logprobs=[a.logprob for a in answers if a.logprob is not None],
            entropies=[a.entropy for a in answers if a.entropy is not None],
            margins=[a.margin for a in answers if a.margin is not None],
            confidences=[a.confidence for a in answers if a.confidence is not None],
            top=[a.top for a in answers] if wants.top else [],
            best=[a.best for a in answers] if wants.best else [],
            given=[a.given for a in answers if a.given is not None],
            chances=[a.chance for a in answers if a.chance is not None],
            beliefs=[self.beliefs[row][0] for row in rows if self.beliefs],
            embeddings=(
                torch.stack([self.beliefs[row][1] for row in rows]) if self.beliefs else None
            ),
            verdict=self.verdict,
            draws=[a.draws for a in answers] if wants.draws else [],
            distributions=[a.distribution for a in answers] if wants.distribution else [],
            patches=[a.patch for a in answers if a.patch is not None],
            heads=list(self.heads.values()),
            links=self.links,
            insertions=[a.insertions for a in answers] if wants.edits else [],
            deletions=[a.deletion for a in answers if a.deletion is not None],
            features=torch.cat(self.features) if wants.features else None,
            hidden=torch.stack([self.hidden[row] for row in rows]) if wants.hidden else None,
            logits=torch.stack([self.logits[row] for row in rows]) if wants.logits else None,
        )


class Run:
    """One generator and all it holds; implements `core.method.Context`."""

    def __init__(
        self,
        handle: Handle,
        *,
        choice: int,
        arrival: int,
        abilities: Abilities,
        roles: dict[str, Role],
        rules: EndRules,
        guide: GuideState | CanvasGuide | None,
        costs: PassCosts,
        memory: Memory,
    ) -> None:
        self._costs = costs
        self._memory = memory
        self.handle = handle
        self.prepared = handle.prepared
        self.choice = choice
        self.arrival = arrival
        self.guide = guide
        self._abilities = abilities
        self._roles = roles
        self._rules = rules
        self.family: dict[Sequence, None] = {}
        """All open sequences of this run."""
        self.twins: dict[Sequence, Sequence] = {}
        """Unconditional twins of the sequences that methods use."""
        self.jobs: list[Job] = []
        self.generator: Decoding | None = None
        self.pages_needed: Mapping[str, int] = {}
        """Pages by role that it takes to admit the run again."""
        self._memories: dict[tuple[int, ...], Sequence] = {}
        """The encoder's sequences, by source."""

    # ------------------------------------------------------------------------------- as a Context
    @property
    def request(self) -> Request:
        return self.prepared.request

    @property
    def prompt(self) -> Seq[int]:
        return self.prepared.prompt

    @property
    def max_new_tokens(self) -> int:
        return self.prepared.max_new_tokens

    @property
    def canvas(self) -> Seq[int | None] | None:
        return self.prepared.canvas

    @property
    def abilities(self) -> Abilities:
        return self._abilities

    @property
    def models(self) -> Mapping[str, Abilities]:
        return {name: role.abilities for name, role in self._roles.items()}

    @property
    def num_passes(self) -> int:
        return self.handle.num_passes

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        if self.request.prefix_cache:
            return self._memory.recall(self.prepared.salt, name, make)
        if name not in self.handle.private:
            self.handle.private[name] = make()
        return self.handle.private[name]

    def pass_seconds(
        self, num_tokens: int, role: str = "target", layers: int | None = None
    ) -> float | None:
        return self._costs.seconds(role, layers, num_tokens, run=self)

    @property
    def num_others(self) -> int:
        return self._costs.num_others("target", None, run=self)

    def note(self, text: str) -> None:
        if text not in self.handle.notes:
            self.handle.notes.append(text)

    @property
    def _choices(self) -> list[ChoiceBuilder]:
        if self.prepared.method.makes_choices:
            return self.handle.choices
        return [self.handle.choices[self.choice]]

    @property
    def finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    def sequence(self, role: str = "target") -> Sequence:
        return self._open(role, self.prepared.source)

    @property
    def canvas_guide(self) -> CanvasGuide | None:
        """The guide, where tokens are placed in any order."""
        return self.guide if isinstance(self.guide, CanvasGuide) else None

    def _open(self, role: str, source: tuple[int, ...]) -> Sequence:
        """An empty sequence, the target's with what the encoder made of the source."""
        store = self._roles[role].store
        sequence = store.open(salt=self.prepared.salt, family=self.family)
        if source and role == "target":
            if source not in self._memories:
                encoder = self._roles["encoder"].store
                memory = encoder.open(salt=self.prepared.salt, family=self.family)
                encoder.remember(memory, source, BIDIRECTIONAL)
                self._memories[source] = memory
            store.bind(sequence, self._memories[source])
        return sequence

    def forced(self, num_made: int) -> frozenset[int]:
        """What the token after so many new ones must be one of; empty: anything."""
        rules = self._abilities.text_rules
        if rules.last_tokens and num_made == self.max_new_tokens - 1:
            return rules.last_tokens & self.prepared.end_tokens
        if rules.first_token is not None and num_made == 0:
            return frozenset({rules.first_token})
        return frozenset()

    def emit(
        self,
        tokens: Seq[int],
        logprobs: Seq[float],
        *,
        alternatives: Seq[Seq[tuple[int, float]]] = (),
        choice: int = 0,
        score: float | None = None,
        num_drafted: int = 0,
        passes: Seq[int] = (),
    ) -> None:
        self.reveal(
            self._choices[choice].next_places(len(tokens)),
            tokens,
            logprobs,
            alternatives=alternatives,
            choice=choice,
            score=score,
            num_drafted=num_drafted,
            passes=passes,
        )

    def reveal(
        self,
        places: Seq[int],
        tokens: Seq[int],
        logprobs: Seq[float],
        *,
        alternatives: Seq[Seq[tuple[int, float]]] = (),
        choice: int = 0,
        score: float | None = None,
        num_drafted: int = 0,
        passes: Seq[int] = (),
    ) -> None:
        builder = self._choices[choice]
        builder.score = score
        for index, (place, token, logprob) in enumerate(zip(places, tokens, logprobs, strict=True)):
            others = alternatives[index] if alternatives else ()
            drafted = index < num_drafted
            step = passes[index] if passes else self.num_passes
            final = Final(
                token=token, logprob=logprob, step=step, alternatives=others, drafted=drafted
            )
            builder.reveal(place, final)
        self._stream(choice)

    def _stream(self, choice: int) -> None:
        """Tell the user what no open place lies before any more."""
        builder = self._choices[choice]
        if builder.finish_reason is not None:
            return
        text, tokens = builder.release()
        if tokens or builder.finish_reason is not None:
            self.handle.events.append(
                Event(
                    text=text,
                    tokens=tuple(tokens),
                    choice=choice if self.prepared.method.makes_choices else self.choice,
                    finish_reason=builder.finish_reason,
                )
            )

    def preview(self, places: Seq[int], tokens: Seq[int | None], choice: int = 0) -> None:
        builder = self._choices[choice]
        if self.request.history and builder.finish_reason is None:
            for place, token in zip(places, tokens, strict=True):
                builder.preview(self.handle.num_passes, place, token)

    def end_at(self, num_tokens: int, choice: int = 0) -> None:
        self._choices[choice].end_at(num_tokens)
        self._stream(choice)

    def compatible(
        self,
        canvas: Seq[int | None],
        places: Seq[int],
        tokens: Seq[int],
        *,
        fresh: bool = True,
        blank: frozenset[int] = frozenset(),
    ) -> list[int]:
        ends = self.prepared.end_tokens
        return compatible(
            self.prompt,
            canvas,
            places,
            tokens,
            banned=[ids for ids in self.prepared.banned if len(ids) > 1 or ids[0] not in ends],
            no_repeat_ngram=self.request.no_repeat_ngram,
            guide=self.canvas_guide,
            fresh=fresh,
            blank=blank,
            length=self.max_new_tokens if blank else None,
        )

    def fits(self, num_tokens: int) -> bool:
        return self.canvas_guide is None or self.canvas_guide.fits(num_tokens)

    def encode(self, text: str) -> list[int]:
        assert self._rules.tokenizer is not None, "refused without one"
        return self._rules.tokenizer.encode(text, add_special=False)

    def text(self, tokens: Seq[int]) -> str:
        assert self._rules.tokenizer is not None, "refused without one"
        return self._rules.tokenizer.decode(tokens, continued=True)

    def chance(self, name: str, *numbers: int) -> float:
        return uniform(self.request.seed, self.choice, zlib.crc32(name.encode()), *numbers)

    def ends(self, tokens: Seq[int]) -> bool:
        return self._rules.ends(tokens)

    def report_prompt(
        self, logprobs: Seq[float], alternatives: Seq[Seq[tuple[int, float]]]
    ) -> None:
        self.handle.prompt_logprobs = list(logprobs)
        self.handle.prompt_alternatives = [tuple(others) for others in alternatives]

    def report_embedding(self, vector: Seq[float]) -> None:
        self.handle.embedding = list(vector)

    # ------------------------------------------------------------------------------ as the engine's
    def start(self) -> None:
        """Create the generator and run it to its first requests."""
        for choice in range(len(self._choices)):
            self._stream(choice)
        self.generator = self.prepared.method.decode(self)
        self._gather(next(self.generator, None))

    def advance(self) -> None:
        """Send the results of the finished jobs and gather the next requests."""
        assert self.generator is not None
        if self.handle.answered_at is None:
            self.handle.answered_at = time.perf_counter()
        requests: list[ForwardRequest] | None
        try:
            try:
                results = [job.result() for job in self.jobs if not job.is_twin]
            except RequestFailed as error:  # a draft may do without an answer, text may not
                requests = self.generator.throw(error)
            else:
                requests = self.generator.send(results)
        except StopIteration:
            requests = None
        self._gather(requests)

    def close(self) -> None:
        """End the generator, if it still runs, and free every page."""
        if self.generator is not None:
            self.generator.close()
        for sequence in list(self.family):
            sequence.close()
        self.jobs = []

    @property
    def is_over(self) -> bool:
        """Has the generator returned?"""
        return self.generator is not None and not self.jobs

    def check_texts(self) -> None:
        """A method that has returned has ended each text that it began. A search may have found
        fewer than were asked for, but not none."""
        begun = [choice for choice in self._choices if choice.reveals or choice.finish_reason]
        assert begun and all(choice.finish_reason is not None for choice in begun), (
            f"{self.request.method} returned before its text was finished; a method emits up to "
            "the end of the text or calls end_at"
        )

    def _gather(self, requests: list[ForwardRequest] | None) -> None:
        self.jobs = []
        for request in requests or ():
            assert request.tokens, "a method asked to run no tokens"
            request.attention.check(len(request.tokens))
            self._begin(request)
            job = Job(run=self, request=request)
            self.jobs.append(job)
            if self.request.guidance_scale != 1.0 and request.role == "target":
                self._add_twin(job)
        for sequence in [owner for owner in self.twins if owner not in self.family]:
            self.twins.pop(sequence).close()

    def _begin(self, request: ForwardRequest) -> None:
        """Apply the cache rule."""
        sequence = request.sequence
        sequence.store.discard(sequence, request.start)
        if request.memory is not None:
            assert request.memory.length, "an encoder's sequence is run before it is read"
            sequence.store.bind(sequence, request.memory)
        if request.layers is not None:
            if sequence.shallow_from is None:
                sequence.shallow_from = request.start
        else:
            assert sequence.shallow_from is None, "discard what ran through some layers only"
        if request.conditioning is not None:
            assert 0 < len(request.conditioning) <= len(request.tokens), "a row per token"
            sequence.conditions.append((request.start, request.conditioning))

    def _add_twin(self, job: Job) -> None:
        negative = self.prepared.negative_prompt
        assert negative is not None, "guidance without a negative prompt"
        request, num_prompt = job.request, len(self.prompt)
        if request.end < num_prompt:
            return
        if request.sequence not in self.twins:
            role = self.request.contrast_role or "target"
            self.twins[request.sequence] = self._open(role, self.prepared.negative_source)
        twin = self.twins[request.sequence]
        counterpart = unconditional(request, twin, num_prompt=num_prompt, negative=negative)
        self._begin(counterpart)
        job.first_contrasted_row = max(0, num_prompt - 1 - request.start)
        shift = request.start - num_prompt + len(negative) - counterpart.start
        job.twin = Job(run=self, request=counterpart, is_twin=True, row_shift=shift)
        self.jobs.append(job.twin)
