"""Planned diffusion: write a plan token by token, then denoise all its spans at once.

Israel et al., arXiv 2510.18087. A plan names topics and promises how long each will be. Where it
ends, by a sync or the text's end, masks stand for all promised spans and are filled in by the same
passes: a span sees the text, itself and earlier plans' spans, not the others of its plan. Each span
commits by its own candidates. Then the finished spans are run once more with the sync, as what
follows reads finished ones (the paper's code keeps what it computed beside masks), and the text
goes on. `core.plans` says what plans are, `training/objectives/planned_diffusion.py` who sees whom
in training; both are kept to, in prompts with plans too.

The answer is text and spans in their order. Plans, tags and padding are no part of it and do not
count as new tokens, unless `keep_tags` asks for them. A token of a span is streamed when all before
it are known; the trace says which pass placed it.

A guide holds for the answer as a whole. It does not look at plans: in text it allows tags at any
time, in spans padding, which leaves room for all that it asks for. So that spans do not come behind
the end of the text, it has none while a plan is open, and spans get no more places than the answer
has left. Penalties then count the answer alone.

Any plan is read. A topic without a length gets `default_length`; one inside of another is the next
one; one that is never closed ends where the plan does, at the latest after `plan_length` tokens. A
plan without topics has no spans. Longer promises than `span_length` or than the room allow are cut,
and topics beyond `spans` or the room are left out. Tags of spans are not drawn in text, nor any
tags in spans. Once there is no room for hidden tokens, the rest is written without plans.

Not here: spans that see each other (the paper's dense variant).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from anyorder.core import lookup
from anyorder.core.attention import (
    CAUSAL,
    Attention,
    Explicit,
    Groups,
)
from anyorder.core.errors import InvalidRequest, RequestFailed
from anyorder.core.forward import (
    NOTHING,
    CanvasRows,
    Decoding,
    ForwardRequest,
    ForwardResult,
    Outputs,
    forward,
)
from anyorder.core.method import Abilities, Context, Method, Needs
from anyorder.core.options import Part, Range
from anyorder.core.plans import LENGTH_UNIT, PlanTokens, plan_visible, promises, span_numbers
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence
from anyorder.sampling.denoising import candidates
from anyorder.sampling.unmasking import Candidate, Commit, Step, open_share
from anyorder.sampling.unmasking.threshold import Threshold

_LEAST_ROOM = LENGTH_UNIT + 3
"""A sync, a span's tags and a unit of text: with less, no plan is begun."""


@dataclass(frozen=True, kw_only=True)
class PlannedDiffusion(Method):
    """Write a plan, then fill in all its parts at the same time."""

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True, plans=True)
    exact: ClassVar[bool] = False
    any_order: ClassVar[bool] = True

    commit: Annotated[
        Commit, Part("sampling/unmasking"), "which places of a span a pass makes final"
    ] = field(default_factory=Threshold)
    step_ratio: Annotated[
        float | None,
        Range(0.001, 1.0),
        "passes a plan's spans take, over the longest one's length; none: as commit has it",
    ] = None
    length_scale: Annotated[float, Range(0.1, 10.0), "spans are so much longer than promised"] = 1.0
    default_length: Annotated[int, Range(1, 4096), "tokens of a span without a promise"] = 30
    span_length: Annotated[int, Range(1, 4096), "most tokens of a span"] = 256
    spans: Annotated[int, Range(1, 256), "most spans of a plan"] = 16
    plan_length: Annotated[int, Range(1, 4096), "most tokens of a plan without its spans"] = 256
    overhead: Annotated[
        int | None,
        Range(0),
        "most tokens of plans, tags and padding besides the text; none: what the context leaves",
    ] = None
    keep_tags: Annotated[bool, "plans, tags and padding are part of the answer"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.commit.needs_steps and self.step_ratio is None:
            raise InvalidRequest(
                f"{lookup.name_of(self.commit)} needs a number of steps; set the option step_ratio."
            )

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        """Plans are written left to right."""
        target = models["target"]
        if "causal" not in target.attention:
            return f"causal attention too; {target.name} was trained without"
        return None

    def check(self, request: Request) -> None:
        """A guide is for the answer's text, and says nothing of plans."""
        if request.guide is not None and self.keep_tags:
            raise InvalidRequest(
                "a guide holds for the text without plans, and keep_tags makes them part of it; "
                "leave keep_tags at false, or the guide out."
            )

    @property
    def num_scratch_tokens(self) -> int:
        return self.overhead or 0

    def decode(self, context: Context) -> Decoding:
        document = _Document(self, context)
        with context.sequence() as sequence:
            while not context.finished:
                drawn = None if document.must_sync else (yield from document.read(sequence))
                if drawn is None or drawn.token in document.closing:
                    yield from document.fill(sequence)
                    document.close(drawn)
                else:
                    document.write(drawn)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A token and what was reported about it."""

    token: int
    logprob: float
    top: Seq[tuple[int, float]]
    step: int
    """In which pass."""


class _Document:
    """All tokens so far, shown or not, and what of them is cached."""

    def __init__(self, options: PlannedDiffusion, context: Context) -> None:
        abilities, request, tags = context.abilities, context.request, context.abilities.plan_tokens
        assert tags is not None and abilities.mask_token is not None, "they were asked for"
        self._options, self._context, self._tags = options, context, tags
        self._mask_token = abilities.mask_token
        self._hidden = {tags.topic, tags.topic_end, tags.span, tags.span_end, tags.sync, tags.pad}
        self._ends = frozenset(request.stop_tokens)
        self._ends |= frozenset() if request.ignore_end else abilities.end_tokens
        self.closing = self._ends | {tags.sync}
        """Tokens that end a plan."""
        self._tokens = list(context.prompt)
        self._num_cached = 0
        self._attention: Attention = CAUSAL
        """How the tokens that are not cached see each other."""
        self._shown: list[int] = []
        """The answer so far."""
        self._num_planned = 0
        """Hidden tokens that were drawn since the last sync."""
        self._num_passes = 0
        """Over spans; each draws with other numbers."""
        self._samplings: dict[tuple[bool, int, bool], Request] = {}
        self._limit = abilities.context_length
        if options.overhead is not None:
            wanted = len(self._tokens) + context.max_new_tokens + options.overhead
            self._limit = min(self._limit, wanted)
        self._read_prompt()
        if not self._plans:
            context.note(
                "there was no room for plans, whose tokens come beside the answer's; raise "
                "overhead or ask for fewer new tokens."
            )

    def _read_prompt(self) -> None:
        """Spans in the prompt are seen as in training, and get the sync that they lack."""
        import torch

        tags, numbers = self._tags, span_numbers(self._tokens, self._tags)
        if not any(number >= 0 for number in numbers):
            return
        if self._context.request.guidance_scale != 1.0:
            raise RequestFailed(
                "planned_diffusion cannot guide a prompt with spans in it, which its negative "
                "prompt lacks; leave guidance_scale at 1."
            )
        if any(number >= 0 for number in numbers[len(numbers) - len(self._since_sync()) :]):
            if numbers[-1] >= 0 and self._tokens[-1] != tags.span_end:
                self._tokens.append(tags.span_end)
            self._tokens.append(tags.sync)
        spans_BT = torch.tensor([span_numbers(self._tokens, tags)])
        syncs_BT = (torch.tensor([self._tokens]) == tags.sync).cumsum(1)
        visible_TT = plan_visible(spans_BT, syncs_BT)[0]
        self._attention = Explicit(mask=tuple(map(tuple, visible_TT.tolist())))

    def _since_sync(self) -> list[int]:
        """What stands behind the last sync."""
        reversed_tokens = self._tokens[::-1]
        if self._tags.sync not in reversed_tokens:
            return list(self._tokens)
        return reversed_tokens[: reversed_tokens.index(self._tags.sync)][::-1]

    @property
    def _room(self) -> int:
        """Places for tokens beyond those that the rest of the answer takes."""
        rest = 0
        if not self._options.keep_tags:
            rest = self._context.max_new_tokens - len(self._shown)
        return self._limit - len(self._tokens) - rest

    @property
    def _plans(self) -> bool:
        """Is there room for a plan?"""
        return self._room >= _LEAST_ROOM

    @property
    def must_sync(self) -> bool:
        """Does a plan have to end here, whatever would be drawn?"""
        if self._num_planned >= self._options.plan_length:
            return True
        return not self._plans and self._tags.topic in self._since_sync()

    # ---------------------------------------------------------------------------- token by token
    def read(
        self, sequence: Sequence
    ) -> Generator[list[ForwardRequest], list[ForwardResult], _Drawn]:
        """Run what is not cached yet and draw the next token."""
        tags, guided, stream = self._tags, None, None
        if self._context.request.guide is not None and not self._in_topic:
            # A tag takes no place of the answer: what is drawn after it has the same place.
            blank, stream = {tags.topic, tags.topic_end, tags.sync}, f"text {len(self._tokens)}"
            guided = CanvasRows(
                text=list(self._shown), places=[len(self._shown)], blank=frozenset(blank)
            )
        result = yield from forward(
            sequence,
            self._tokens[self._num_cached :],
            self._num_cached,
            attention=self._attention,
            outputs=Outputs(top=self._context.request.logprobs),
            sampling=self._sampling(is_guided=guided is not None),
            stream=stream,
            canvas=guided,
        )
        self._num_cached, self._attention = len(self._tokens), CAUSAL
        return _Drawn(
            token=result.tokens[0],
            logprob=result.logprobs[0],
            top=result.top[0] if result.top else (),
            step=self._context.num_passes,
        )

    @property
    def _in_topic(self) -> bool:
        """Is a topic of a plan being written?"""
        since = [token for token in self._since_sync() if token in self._hidden]
        return bool(since) and since[-1] == self._tags.topic

    def _sampling(self, *, is_guided: bool) -> Request:
        """The request's controls; what only spans hold is not drawn in text."""
        request, tags = self._context.request, self._tags
        num_hidden = 0
        if request.min_new_tokens and not is_guided:  # hidden tokens are counted, but are not text
            num_hidden = len(self._tokens) - len(self._context.prompt) - len(self._shown)
        needs_sync = request.guide is not None and tags.topic in self._since_sync()
        key = self._plans, num_hidden, needs_sync
        if key not in self._samplings:
            never = {tags.span, tags.span_end, tags.pad, self._mask_token}
            never |= set() if self._plans else self._hidden
            never |= self._ends if needs_sync else set()
            self._samplings[key] = dataclasses.replace(
                request,
                logit_bias={**request.logit_bias, **dict.fromkeys(never, -math.inf)},
                min_new_tokens=request.min_new_tokens + num_hidden,
                max_new_tokens=None,
            )
        return self._samplings[key]

    def write(self, drawn: _Drawn) -> None:
        """Add a token to the text or the plan."""
        tags = self._tags
        hidden = self._in_topic or drawn.token in (tags.topic, tags.topic_end)
        self._num_planned += hidden
        self._tokens.append(drawn.token)
        self._show([drawn], hidden=hidden)

    def close(self, drawn: _Drawn | None) -> None:
        """End the plan, and the text if its end was drawn; None: a sync that nobody drew."""
        if drawn is not None and drawn.token in self._ends:
            self._show([drawn], hidden=False)
            return
        self._tokens.append(self._tags.sync)
        self._num_planned = 0
        if drawn is None:
            step = self._context.num_passes
            drawn = _Drawn(token=self._tags.sync, logprob=0.0, top=(), step=step)
        self._show([drawn], hidden=True)

    def _show(self, tokens: Seq[_Drawn], *, hidden: bool) -> None:
        """Make tokens part of the answer, if they are."""
        if not tokens or (hidden and not self._options.keep_tags):
            return
        self._shown += [drawn.token for drawn in tokens]
        self._context.emit(
            [drawn.token for drawn in tokens],
            [drawn.logprob for drawn in tokens],
            alternatives=[drawn.top for drawn in tokens],
            passes=[drawn.step for drawn in tokens],
        )

    # -------------------------------------------------------------------------------- all at once
    def fill(self, sequence: Sequence) -> Decoding:
        """Denoise the spans of the plan that has just ended, if it has any."""
        lengths = self._lengths()
        if not lengths:
            return
        if self._num_cached < len(self._tokens):
            tail = self._tokens[self._num_cached :]
            yield from forward(
                sequence,
                tail,
                self._num_cached,
                attention=self._attention,
                rows=(),
                outputs=NOTHING,
            )
            self._num_cached = len(self._tokens)
        spans = _Spans(self._tags, lengths, step=self._context.num_passes)
        sampling = self._span_sampling(len(self._shown) + len(spans.board))
        shown, shift = list(self._shown), int(self._context.abilities.token_shift)
        while spans.open_places and not self._context.finished:
            result = yield from forward(
                sequence,
                [self._mask_token if t is None else t.token for t in spans.board],
                self._num_cached,
                attention=Groups(ids=tuple(spans.groups)),
                rows=[place - shift for place in spans.open_places],
                outputs=Outputs(
                    entropy=self._options.commit.reads_entropy,
                    margin=self._options.commit.reads_margin,
                    top=self._context.request.logprobs,
                ),
                sampling=sampling,
                stream=f"spans {self._num_passes}",
                canvas=self._canvas(spans, shown),
            )
            self._commit(spans, result, shown)
            self._num_passes += 1
            self._show_known(spans)
        self._tokens += [drawn.token for drawn in spans.board if drawn is not None]
        # The sync comes behind them, and sees all.
        lines = {
            group: (*(other == group for other in spans.groups), False)
            for group in set(spans.groups)
        }
        last = (True,) * (len(spans.groups) + 1)
        self._attention = Explicit(mask=(*(lines[group] for group in spans.groups), last))

    def _lengths(self) -> list[int]:
        """Of the plan's spans, within the limits."""
        options, room = self._options, self._room - 1  # the sync's place
        guided = self._context.request.guide is not None
        most = self._context.max_new_tokens - len(self._shown) if guided else room
        lengths = []
        for promise in promises(self._since_sync(), self._tags)[: options.spans]:
            length = options.default_length
            if promise.length is not None:
                length = max(1, round(promise.length * LENGTH_UNIT * options.length_scale))
            length = min(length, options.span_length, room - 2, most)
            if length < 1:
                break
            lengths.append(length)
            room -= length + 2
            most -= length if guided else 0
        return lengths

    def _span_sampling(self, num_places: int) -> Request:
        """The request's controls; no span holds a tag, nor an end token before the answer has the
        tokens that it must have."""
        request, enough = self._context.request, self._context.request.min_new_tokens
        never = self._hidden - {self._tags.pad}
        return dataclasses.replace(
            request,
            logit_bias={**request.logit_bias, **dict.fromkeys(never, -math.inf)},
            min_new_tokens=num_places if len(self._shown) < enough else 0,
            max_new_tokens=None,
        )

    def _canvas(self, spans: _Spans, shown: list[int]) -> CanvasRows:
        """The answer as far as it is known, with the spans' open places: neither tags nor padding,
        but these may yet turn out to be padding."""
        text: list[int | None] = list(shown)
        places = []
        for drawn in spans.board:
            if drawn is None:
                places.append(len(text))
                text.append(None)
            elif drawn.token not in self._hidden:
                text.append(drawn.token)
        return CanvasRows(text=text, places=places, blank=frozenset({self._tags.pad}))

    def _commit(self, spans: _Spans, result: ForwardResult, shown: list[int]) -> None:
        """Make final what each span's candidates allow."""
        context, options = self._context, self._options
        groups: dict[int, list[Candidate]] = {}
        for candidate in candidates(spans.open_places, result):
            chance = context.chance("spans", self._num_passes, candidate.place)
            rolled = dataclasses.replace(candidate, chance=chance)
            groups.setdefault(spans.groups[candidate.place], []).append(rolled)
        total = 0
        if options.step_ratio is not None:
            total = math.ceil(max(spans.lengths) * options.step_ratio)
        chosen = [
            own[index]
            for group, own in groups.items()
            for index in options.commit.choose(own, spans.step(group, len(own), total))
        ]
        canvas = self._canvas(spans, shown)
        answer_places = dict(zip(spans.open_places, canvas.places, strict=True))
        kept = context.compatible(
            canvas.text,
            [answer_places[candidate.place] for candidate in chosen],
            [candidate.token for candidate in chosen],
            blank=canvas.blank,
        )
        for candidate in (chosen[index] for index in kept):
            spans.board[candidate.place] = _Drawn(
                token=candidate.token,
                logprob=candidate.logprob,
                top=candidate.alternatives,
                step=context.num_passes,
            )
        spans.num_steps += 1

    def _show_known(self, spans: _Spans) -> None:
        """Show what no open place lies before any more."""
        while spans.num_shown < len(spans.board):
            drawn = spans.board[spans.num_shown]
            if drawn is None or self._context.finished:
                return
            self._show([drawn], hidden=drawn.token in self._hidden)
            spans.num_shown += 1


class _Spans:
    """The spans of one plan, side by side with their tags."""

    def __init__(self, tags: PlanTokens, lengths: Seq[int], *, step: int) -> None:
        first = _Drawn(token=tags.span, logprob=0.0, top=(), step=step)
        last = _Drawn(token=tags.span_end, logprob=0.0, top=(), step=step)
        self.lengths = lengths
        self.board: list[_Drawn | None] = [
            drawn for length in lengths for drawn in (first, *[None] * length, last)
        ]
        """What stands, None where it is open."""
        self.groups = [group for group, n in enumerate(lengths) for _ in range(n + 2)]
        """Which span a place belongs to."""
        self.num_steps = 0
        self.num_shown = 0

    @property
    def open_places(self) -> list[int]:
        """Places that are not filled yet."""
        return [place for place, drawn in enumerate(self.board) if drawn is None]

    def step(self, group: int, num_open: int, total: int) -> Step:
        """Where a span is in its schedule of `total` steps; 0: it has none."""
        length = self.lengths[group]
        after, due = (num_open - 1) / length, 1
        if total:
            after = open_share("linear", (self.num_steps + 1) / total)
            due = max(1, num_open - math.floor(length * after + 1e-9))
        return Step(before=num_open / length, after=after, due=due)
