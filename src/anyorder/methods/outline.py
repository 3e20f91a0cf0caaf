"""Outline: write a plan, then all parts of it at the same time.

Skeleton-of-Thought (Ning et al., arXiv 2307.15337), for any network that writes from left to right:
behind the prompt it first writes a numbered list of points; then every point is written out by a
fork of that sequence, all in the same passes and sharing the pages of prompt and plan. Parts do not
see each other. With `depth` the points of a plan get plans of their own, for long texts.

The text is the parts in order, each under its heading; it is streamed as soon as what lies before
it is final, and ends where `max_new_tokens` cuts it off. The plan itself is not part of it. Points
are the plan's lines, whatever they are numbered by, up to an empty line with something else behind
it; a plan of fewer than two is dropped, and what it was for is written from left to right. What the
network continues with plans and parts is plain text, in which {number} and {point} are filled in;
tags of a chat template may stand in it.

With `rounds`, a judge reads the text once all of it is written, and the parts that score worst are
written again, behind what stands before them (refinement by feedback, as in Self-Refine, Madaan et
al., arXiv 2303.17651, by a score instead of a critic's words). The score is the mean
log-probability of a part's tokens in their place, less `contrast` of what it is without the parts
before it (`sampling/coherence.py` says why); the judge is the model itself, or a second one of the
same vocabulary (`--draft MODEL -o judge=draft`). The rewrites of a round are made in the same
passes, behind the text as it stood when the round began, by other random numbers than before. There
the judge compares old and new, and the better one stays; then the next round begins. At temperature
0 a part is written only once behind the same text, since it would say the same. Nothing stands
before the first part: it stays, and is streamed at once. Others are final, and streamed, when no
round can come back to them. A round takes two passes of the judge besides the rewriting; its scores
are among the report's notes. What `max_new_tokens` cuts off is not judged.

Networks that fill in masks have this token by token: `revise` of `masked_diffusion` and
`block_diffusion`, and `mask_predict`, mask the least likely ones again.

`min_new_tokens` holds for every part. Tokens of headings and separators are given: their
log-probability is 0. Cached besides the text are the plans and the parts that it has no room for; a
request whose parts might not all fit into the cache at once is refused, `min_new_tokens` aside.
Not here: a second model that decides whether a question suits a plan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from copy import copy
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import Decoding, ForwardRequest, ForwardResult, Outputs, forward_all
from anyorder.core.method import Abilities, Context, Method, Needs
from anyorder.core.options import Range
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence
from anyorder.sampling.feedback import Feedback, Placed

_BULLET = re.compile(r"(?:[-*•]|\(?\d{1,3}(?:\.\d{1,3})*[.):])\s*")
_BEGINS_BULLET = re.compile(r"[-*•(]|\d")


@dataclass(frozen=True, kw_only=True)
class Outline(Method):
    """Write a plan, then all parts of it at the same time."""

    exact: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True

    points: Annotated[int, Range(2, 64), "most points of a plan"] = 6
    plan_length: Annotated[int, Range(1, 4096), "most tokens of a plan"] = 160
    part_length: Annotated[int, Range(1, 4096), "most tokens of a part"] = 160
    depth: Annotated[
        int, Range(1, 4), "levels of plans; the points of each but the last get plans of their own"
    ] = 1
    plan_lead: Annotated[str, "text that the network continues with the plan"] = (
        "Here is an outline of my answer, one short line per point:\n\n1."
    )
    inner_plan_lead: Annotated[str, "the same below the first level"] = (
        "\n\nHere is an outline of part {number}, {point}, one short line per point:\n\n1."
    )
    part_lead: Annotated[str, "text behind the plan, before a heading; not shown"] = "\n\n"
    heading: Annotated[str, "text that the network continues with a part; shown"] = "**{point}**\n"
    between: Annotated[str, "text between parts; a part is over where it comes"] = "\n\n"
    rounds: Annotated[int, Range(0, 64), "how often weak parts are written again"] = 0
    weakest: Annotated[int, Range(1, 4096), "most parts written again in a round"] = 2
    threshold: Annotated[
        float | None,
        Range(-1000, 1000),
        "only parts of a lower score, in nats a token, are written again; none: of any score",
    ] = None
    contrast: Annotated[
        float, Range(0, 1), "share of a part's score without the parts before it that is taken off"
    ] = 0.5
    judge: Annotated[str, "role of the model that scores parts: target or draft"] = "target"

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        judge = models.get(self.judge)
        if judge is None:
            return f"a {self.judge} model to judge by; the engine has {', '.join(models)}"
        if judge.kind != "decoder":
            return f"a judge that runs by itself; {judge.name} is a model's part ({judge.kind})"
        missing = Needs().missing(judge, tuple(models))
        return None if missing is None else f"a judge with {missing}"

    @property
    def num_scratch_tokens(self) -> int:
        heading = len(self.heading.encode()) + self.heading.count("{point}") * self.plan_length
        compared = self._most_rewrites * (heading + 2 * self.part_length)
        return max(self._most_tokens(0), compared)

    @property
    def num_branches(self) -> int:
        num_parts: int = sum(self.points**level for level in range(1, self.depth + 1))
        return max(num_parts, 2 * self._most_rewrites)

    def cached_elsewhere(
        self, num_tokens: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        """A judge of its own reads the text, and parts beside it."""
        reads = self.rounds and self.judge != "target"
        if not reads or num_tokens > models[self.judge].context_length:
            return {}
        return {self.judge: num_tokens + self.num_scratch_tokens}

    @property
    def _feedback(self) -> Feedback:
        return Feedback(
            rounds=self.rounds,
            weakest=self.weakest,
            threshold=self.threshold,
            contrast=self.contrast,
            judge=self.judge,
        )

    @property
    def _most_rewrites(self) -> int:
        num_parts: int = self.points**self.depth
        return min(self.weakest, num_parts - 1) if self.rounds else 0

    def _most_tokens(self, level: int) -> int:
        """Of a part and all below it, what is seen of it aside: its points have together at most
        as many tokens as its plan, and a text as many as bytes."""
        leads = self.plan_lead, *[self.inner_plan_lead] * (self.depth - 1)
        leads += (self.part_lead + self.heading,)
        if level == self.depth:
            return len(leads[level].encode()) + self.part_length
        named = leads[level + 1].count("{point}") * self.plan_length
        own = len(leads[level].encode()) + self.plan_length
        return own + named + self.points * self._most_tokens(level + 1)

    def check(self, request: Request) -> None:
        """A guide would have to say where parts begin."""
        if request.guide is not None:
            raise InvalidRequest(
                "outline writes parts beside each other and cannot follow a guide; use "
                "autoregressive, or leave the guide out."
            )

    def decode(self, context: Context) -> Decoding:
        with context.sequence() as sequence:
            root = _Part(self, context, sequence, text=context.prompt, number="", point="")
            document, parts = _Document(self, context, root), [root]
            try:
                while not context.finished and not all(part.done for part in parts):
                    active = [part for part in parts if not part.done]
                    results = yield from forward_all([part.request() for part in active])
                    for part, result in zip(active, results, strict=True):
                        part.hear(result)
                        parts += part.parts if part.done else ()
                    document.show()
                for part in parts[1:]:
                    part.sequence.close()
                if not context.finished:
                    yield from self._feedback.decode(context, document, root.sequence)
            finally:
                for part in parts:
                    part.sequence.close()


class _Part:
    """A stretch of text: a plan and then the parts it was divided into, or written out."""

    def __init__(
        self,
        options: Outline,
        context: Context,
        sequence: Sequence,
        *,
        text: Seq[int],
        number: str,
        point: str,
    ) -> None:
        self._options, self._context = options, context
        self.sequence = sequence
        self._before = list(text)
        """All that is seen of prompt and plans."""
        self.number, self._point = number, point
        self._ends = frozenset(context.request.stop_tokens)
        self._ends |= frozenset() if context.request.ignore_end else context.abilities.end_tokens
        self.level = number.count(".") + 1 if number else 0
        self.is_plan = self.level < options.depth
        self.heading = self._encode(options.heading) if number else []
        self.parts: list[_Part] = []
        self.done = False
        is_first = all(order == "1" for order in number.split("."))
        self.is_final = not options.rounds or is_first or not number
        """Does it stay as it is written?"""
        self._round = 0
        if not number:
            self._begin(self._encode(options.plan_lead), start=0)
        elif self.is_plan:
            self._begin(self._encode(options.inner_plan_lead))
        else:
            self._begin([*self._encode(options.part_lead), *self.heading])

    @property
    def is_whole(self) -> bool:
        """Is it the whole text, without a plan?"""
        return not self.number and not self.is_plan

    def _encode(self, template: str) -> list[int]:
        filled = template.replace("{number}", self.number).replace("{point}", self._point)
        return [token for token in self._context.encode(filled) if token not in self._ends]

    def _begin(self, lead: list[int], *, start: int | None = None) -> None:
        """Write behind prompt, plans and this."""
        request = self._context.request
        self._text = [*self._before, *lead]
        self._start = len(self._before) - 1 if start is None else start
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[list[tuple[int, float]]] = []
        self.num_ready = 0
        """How many of its tokens stand in the text whatever comes."""
        room = self._context.abilities.context_length - len(self._text)
        self._least = 0 if self.is_plan else request.min_new_tokens
        if self.is_whole:
            self._most = self._context.max_new_tokens
            self._sampling = request
        else:
            length = self._options.plan_length if self.is_plan else self._options.part_length
            self._most = min(max(length, self._least), room)
            least = self._least and len(self._text) - len(self._context.prompt) + self._least
            self._sampling = replace(request, min_new_tokens=least, max_new_tokens=None)
        if self._most < 1:
            self._end()

    def again(self, before: Seq[int], *, sequence: Sequence, number: int, room: int) -> _Part:
        """The same part, to be written anew behind this text and its heading, in this round."""
        rewrite = copy(self)
        rewrite.sequence, rewrite._before, rewrite._round = sequence, list(before), number
        rewrite.done = False
        rewrite._begin([])
        rewrite._most = min(rewrite._most, room)
        return rewrite

    def take(self, other: _Part) -> None:
        """Say what another says."""
        self.tokens, self.logprobs, self.top = other.tokens, other.logprobs, other.top
        self.num_ready = other.num_ready

    def request(self) -> ForwardRequest:
        """What it wants to know."""
        kind = "plan" if self.is_plan else "part"
        again = f", round {self._round}" if self._round else ""
        return ForwardRequest(
            sequence=self.sequence,
            tokens=self._text[self._start :],
            start=self._start,
            outputs=Outputs(top=self._context.request.logprobs),
            sampling=self._sampling,
            stream=None if self.is_whole else f"{kind} {self.number}{again}",
        )

    def hear(self, result: ForwardResult) -> None:
        """Take the next token."""
        (token,), (logprob,) = result.tokens, result.logprobs
        self._start = len(self._text)
        ended = token in self._ends
        if not ended or self.is_whole:
            self._text.append(token)
            self.tokens.append(token)
            self.logprobs.append(logprob)
            self.top += result.top
        if self.is_whole:
            self.num_ready = len(self.tokens)
            return
        text = self._context.text(self.tokens)
        if self.is_plan:
            points, is_over = _points(text)
            ended |= is_over or len(points) > self._options.points
        else:
            if text[len(self._context.text(self.tokens[: self.num_ready])) :].strip():
                self.num_ready = len(self.tokens)
            between = self._options.between
            is_over = bool(between) and between in text.lstrip()
            ended |= is_over and len(self.tokens) >= self._least
        if ended or len(self.tokens) >= self._most:
            self._end()

    def _end(self) -> None:
        """Nothing more is written here: it is over, or, for a plan, its parts begin."""
        self.done = True
        if not self.is_plan:
            return
        points = _points(self._context.text(self.tokens))[0][: self._options.points]
        if len(points) < 2:
            self.is_plan = self.done = False
            lead = [*self._encode(self._options.part_lead), *self.heading] if self.number else []
            if not self.number:
                self._context.note("the network wrote no plan, so the text has no parts.")
            self._begin(lead)
            return
        prefix = f"{self.number}." if self.number else ""
        self.parts = [
            _Part(
                self._options,
                self._context,
                self.sequence.fork(),
                text=self._text,
                number=f"{prefix}{order}",
                point=point,
            )
            for order, point in enumerate(points, 1)
        ]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Tokens that follow those before them in the text."""

    tokens: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    part: _Part | None
    """Whose own they are; None: they were given."""


class _Document:
    """What of all parts is final, in order."""

    def __init__(self, options: Outline, context: Context, root: _Part) -> None:
        self.root = root
        self._options, self._context = options, context
        self._separator = options.between
        self._between = context.encode(options.between)
        self._shown: dict[_Part, int] = {}
        """Tokens by part, of those whose heading is shown."""
        self.num_shown = 0
        """Tokens in all, whether the text's limit cuts them off or not."""
        self._last = ""
        """The text of the last part that was shown."""

    def show(self) -> None:
        """Emit what became final; with the last part, the text ends."""
        pieces: list[_Piece] = []
        is_all = self._show(self.root, pieces)
        if is_all and not self.root.is_whole:
            self._context.end_at(min(self.num_shown, self._context.max_new_tokens))
        for piece in pieces:
            self._context.emit(piece.tokens, piece.logprobs, alternatives=piece.top)

    def merged(self) -> tuple[list[int], list[Placed[_Part]]]:
        """Prompt and text, final or not, and where in it the parts stand."""
        pieces: list[_Piece] = []
        _Document(self._options, self._context, self.root)._show(self.root, pieces, whatever=True)
        text, placed = list(self._context.prompt), []
        for piece in pieces:
            if piece.part is not None:
                placed.append(Placed(part=piece.part, start=len(text)))
            text += piece.tokens
        return text, placed

    def _show(self, part: _Part, pieces: list[_Piece], *, whatever: bool = False) -> bool:
        """Show what of a part is final, or whatever there is. Is that all of it?"""
        if part not in self._shown:
            if not (part.is_final or part.is_plan or whatever):
                return False
            is_apart = not self.num_shown or self._last.endswith(self._separator)
            given = [*(() if is_apart else self._between), *part.heading]
            self._add(pieces, given, [0.0] * len(given), [[]] * len(given), None)
            self._shown[part] = 0
        if part.is_plan:
            shown = (self._show(below, pieces, whatever=whatever) for below in part.parts)
            return part.done and all(shown)
        if not (part.is_final or whatever):
            return False
        new = slice(self._shown[part], part.num_ready)
        self._add(pieces, part.tokens[new], part.logprobs[new], part.top[new], part)
        self._shown[part] = part.num_ready
        self._last = self._context.text(part.tokens[: part.num_ready])
        return part.done

    def _add(
        self,
        pieces: list[_Piece],
        tokens: list[int],
        logprobs: list[float],
        top: list[list[tuple[int, float]]],
        part: _Part | None,
    ) -> None:
        pieces.append(_Piece(tokens=tokens, logprobs=logprobs, top=top, part=part))
        self.num_shown += len(tokens)


def _points(plan: str) -> tuple[list[str], bool]:
    """The lines of a list, without what they are numbered by and without emphasis; and whether the
    list is over: something else stands behind an empty line."""
    points: list[str] = []
    is_apart = False
    for line in plan.strip().splitlines():
        bare = line.replace("**", "").strip()
        point = _BULLET.sub("", bare).rstrip(" .:")
        if point and is_apart and not _BEGINS_BULLET.match(bare):
            return points, True
        if point:
            points.append(point)
        is_apart = bool(points) and not point and not bare
    return points, False
