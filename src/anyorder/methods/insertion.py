"""Insertion and deletion: tokens are put in wherever some are missing, wrong ones are taken out.

The Levenshtein Transformer (Gu et al., arXiv 1905.11006). A text begins empty. An iteration asks
the network which tokens do not belong and takes those out that more likely than not do not; asks
how many are missing behind each of the others, and behind the prompt, and puts as many masks there;
and has all masks predicted at once. The text is done when an iteration leaves it as it was, or
after `iterations` of them. Nobody says beforehand how long it will be. `penalty` makes inserting
nothing less likely, against texts that end up too short. A pass that would see what the last one
saw is not run again, so a text that needs no correction takes three passes.

With a temperature, numbers of missing tokens are drawn too; what is taken out never is. Counts that
would make the text too long or too short for the request are changed one by one, the cheapest
change first. A canvas keeps its fixed tokens and each gap its length: what is taken out of a gap is
made up for somewhere in it. A text starts with its canvas's gaps all masks.

Of tokens that may not stand together (banned sequences, n-grams) the less likely ones are predicted
again; where one taken out makes others neighbours, they are taken out too. Guidance steers tokens
alone. Insertion Transformers (Stern et al., arXiv 1902.03249) put at most one token into each gap
and take none out; their joint choice of gap and token is not here. Nor are guides, and starting
from somebody else's draft.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    CanvasRows,
    Decoding,
    ForwardRequest,
    ForwardResult,
    Outputs,
    forward,
)
from anyorder.core.method import Abilities, Context, Method, Needs
from anyorder.core.options import Range
from anyorder.core.request import Request
from anyorder.core.sequence import Sequence

_Pass = Generator[list[ForwardRequest], list[ForwardResult], ForwardResult]


@dataclass(frozen=True, kw_only=True)
class Insertion(Method):
    """Put tokens in where some are missing and take wrong ones out, until nothing changes."""

    iterations: Annotated[int, Range(1, 1000), "most times that the text is edited"] = 10
    penalty: Annotated[
        float, Range(0, 100), "taken off the log-probability that nothing is missing"
    ] = 0.0

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True, edits=True)
    exact: ClassVar[bool] = False
    fills_canvas: ClassVar[bool] = True

    def check(self, request: Request) -> None:
        """A guide knows texts whose length is given."""
        if request.guide is not None:
            raise InvalidRequest(
                "insertion cannot keep to a guide, which must know how long the text will be; "
                "leave guide out, or use mask_predict."
            )

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        """Tokens that stand at a place of the text for certain would be moved by insertions."""
        rules = models["target"].text_rules
        if rules.first_token is not None or rules.last_tokens:
            return "texts that may begin and end with any token"
        return None

    def decode(self, context: Context) -> Decoding:
        if context.finished:
            return
        with context.sequence() as sequence:
            text = _Text(context, sequence)
            yield from text.fill()  # what a canvas leaves open
            for iteration in range(self.iterations):
                before = text.line
                edits = yield from text.ask()
                if text.delete(edits.deletions[1:]):
                    edits = yield from text.ask()
                text.insert(edits.insertions, self.penalty, iteration)
                yield from text.fill()
                if text.line == before:
                    break
        text.finish()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Token:
    """One that stands in the text."""

    id: int
    logprob: float = 0.0
    others: Seq[tuple[int, float]] = ()
    step: int = 0
    """The pass that predicted it."""
    fixed: bool = False


class _Text:
    """A text in the making."""

    def __init__(self, context: Context, sequence: Sequence) -> None:
        self._context = context
        self._sequence = sequence
        self._tokens: list[_Token | None] = [
            None if token is None else _Token(id=token, fixed=True)
            for token in context.canvas or ()
        ]
        """None for a mask."""
        self._shown = list(context.canvas or ())
        self._gaps = [(max(1, context.request.min_new_tokens), context.max_new_tokens)]
        """Fewest and most tokens before the first fixed one, between it and the next, ..."""
        if context.canvas is not None:
            sizes = [0]
            for token in context.canvas:
                sizes += [0] * (token is not None)
                sizes[-1] += token is None
            self._gaps = [(size, size) for size in sizes]
        self._num_fills = 0

    @property
    def line(self) -> list[int | None]:
        """Ids, None for masks."""
        return [None if token is None else token.id for token in self._tokens]

    # -------------------------------------------------------------------------------- the passes
    def ask(self) -> _Pass:
        """What is missing behind the prompt and behind each token, and which do not belong."""
        first = len(self._context.prompt) - 1
        outputs = Outputs(token=False, logprob=False, edits=True)
        return self._run(range(first, first + 1 + len(self._tokens)), outputs)

    def fill(self) -> Decoding:
        """Predict all masks; again where tokens may not stand together."""
        context = self._context
        first = len(context.prompt) - context.abilities.token_shift
        while masked := [place for place, token in enumerate(self._tokens) if token is None]:
            self._num_fills += 1
            canvas = CanvasRows(text=self.line, places=masked, length=len(self._tokens))
            result = yield from self._run(
                [first + place for place in masked],
                Outputs(top=context.request.logprobs),
                canvas,
            )
            order = sorted(range(len(masked)), key=lambda index: -result.logprobs[index])
            places = [masked[index] for index in order]
            kept = context.compatible(self.line, places, [result.tokens[i] for i in order])
            for index in (order[i] for i in kept):
                self._tokens[masked[index]] = _Token(
                    id=result.tokens[index],
                    logprob=result.logprobs[index],
                    others=result.top[index] if result.top else (),
                    step=context.num_passes,
                )
            self._show()

    def _run(self, rows: Seq[int], outputs: Outputs, canvas: CanvasRows | None = None) -> _Pass:
        context = self._context
        mask_token = context.abilities.mask_token
        assert mask_token is not None, "it was asked for"
        line = [mask_token if token is None else token for token in self.line]
        return forward(
            self._sequence,
            [*context.prompt, *line, *context.abilities.closing_tokens],
            0,
            attention=BIDIRECTIONAL,
            rows=rows,
            outputs=outputs,
            stream=f"filling {self._num_fills}",
            canvas=canvas,
            noise=sum(token is None for token in self._tokens) / max(1, len(line)),
        )

    # --------------------------------------------------------------------------------- the edits
    def delete(self, shares: Seq[float]) -> bool:
        """Take out what does not belong; was there anything?"""
        before = len(self._tokens)
        self._tokens = [
            token
            for token, share in zip(self._tokens, shares, strict=True)
            if share <= 0.5 or _is_fixed(token)
        ]
        while len(self._tokens) < before and (clashing := self._clashing()):
            self._tokens = [t for place, t in enumerate(self._tokens) if place not in clashing]
        self._show()
        return len(self._tokens) < before

    def _clashing(self) -> set[int]:
        """Places of tokens that may not stand where they are now."""
        tokens = {place: token for place, token in enumerate(self._tokens) if token is not None}
        free = [place for place, token in tokens.items() if not token.fixed]
        free.sort(key=lambda place: -tokens[place].logprob)
        canvas = [tokens[place].id if tokens[place].fixed else None for place in tokens]
        ids = [tokens[place].id for place in free]
        kept = self._context.compatible(canvas, free, ids, fresh=False)
        return set(free).difference(free[index] for index in kept)

    def insert(self, tables: Seq[Seq[float]], penalty: float, iteration: int) -> None:
        """Put masks where the network, by log-probabilities of their number, finds some missing:
        before the first token, before the second, ..."""
        context = self._context
        tables = [[table[0] - penalty, *table[1:]] for table in tables]
        counts = [
            _pick(table, context.request.temperature, context.chance("missing", iteration, gap))
            for gap, table in enumerate(tables)
        ]
        first = 0
        for least, most in self._gaps:
            own = self._tokens[first:]
            size = next((i for i, token in enumerate(own) if _is_fixed(token)), len(own))
            part = slice(first, first + size + 1)
            counts[part] = _within(counts[part], tables[part], least - size, most - size)
            first = part.stop
        tokens: list[_Token | None] = []
        for count, token in zip(counts, [*self._tokens, None], strict=True):
            tokens += [*[None] * count, token]
        self._tokens = tokens[:-1]
        for place in range(min(context.request.min_new_tokens, len(self._tokens))):
            token = self._tokens[place]
            if token is not None and not token.fixed and context.ends([token.id]):
                self._tokens[place] = None  # an end that has come to stand too early
        self._show()

    # ---------------------------------------------------------------------------- what is told
    def _show(self) -> None:
        """Tell what has changed."""
        line = self.line
        length = max(len(line), len(self._shown))
        now, before = (ids + [None] * (length - len(ids)) for ids in (line, self._shown))
        changed = [place for place in range(length) if now[place] != before[place]]
        self._context.preview(changed, [now[place] for place in changed])
        self._shown = line

    def finish(self) -> None:
        """Make it final."""
        made = {
            place: token
            for place, token in enumerate(self._tokens)
            if token is not None and not token.fixed
        }
        self._context.reveal(
            list(made),
            [token.id for token in made.values()],
            [token.logprob for token in made.values()],
            alternatives=[token.others for token in made.values() if token.others],
            passes=[token.step for token in made.values()],
        )
        self._context.end_at(len(self._tokens))


def _is_fixed(token: _Token | None) -> bool:
    return token is not None and token.fixed


def _pick(table: Seq[float], temperature: float, chance: float) -> int:
    """The likeliest number, or one drawn."""
    best = max(range(len(table)), key=lambda number: table[number])
    if temperature == 0:
        return best
    shares = [math.exp((value - table[best]) / temperature) for value in table]
    left = chance * sum(shares)
    for number, share in enumerate(shares):
        left -= share
        if left < 0:
            return number
    return best


def _within(counts: list[int], tables: Seq[Seq[float]], least: int, most: int) -> list[int]:
    """The counts changed one by one, each time where it costs least, until their sum fits. A
    table's last entry is that of all higher numbers too."""
    counts, total = list(counts), sum(counts)
    step = 1 if total < least else -1
    goal = min(max(total, least), most)

    def cost(gap: int) -> float:
        table, count = tables[gap], counts[gap]
        return table[min(count, len(table) - 1)] - table[min(count + step, len(table) - 1)]

    heap = [(cost(gap), gap) for gap, count in enumerate(counts) if count + step >= 0]
    heapq.heapify(heap)
    while total != goal:
        _, gap = heapq.heappop(heap)
        counts[gap] += step
        total += step
        if counts[gap] + step >= 0:
            heapq.heappush(heap, (cost(gap), gap))
    return counts
