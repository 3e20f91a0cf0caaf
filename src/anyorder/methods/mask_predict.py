"""Mask-predict: predict all tokens at once, then mask the least likely ones and predict them again.

Ghazvininejad et al. (arXiv 1904.09324). Of T = `iterations` passes, the first predicts a text's N
tokens, and pass t + 1 once more those N (T - t) / T of them, but at least one, that were least
likely when they were last predicted. T = 1 is the one-shot non-autoregressive translator. Where a
network tells how long a text will be, its `lengths` likeliest lengths are tried side by side,
reading one encoding of the source; the text whose tokens have the highest mean log-probability, as
they were last predicted, wins. Elsewhere, and with a canvas, the length is the request's.

Of tokens that may not stand together (banned sequences, n-grams, a guide) the less likely ones are
predicted again, at the end for as long as it takes. Not here: ranking the candidates by a second
model.
"""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.forward import (
    CanvasRows,
    Decoding,
    ForwardRequest,
    ForwardResult,
    Outputs,
    forward,
    forward_all,
)
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Range
from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class MaskPredict(Method):
    """Predict all tokens at once, then the least likely ones again, several times."""

    iterations: Annotated[int, Range(1, 1000), "passes over the text; 1: all tokens at once"] = 10
    lengths: Annotated[
        int, Range(1, 64), "likeliest lengths that are tried, where the network predicts lengths"
    ] = 5

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True)
    exact: ClassVar[bool] = False
    fills_canvas: ClassVar[bool] = True
    may_begin: ClassVar[bool] = True

    def decode(self, context: Context) -> Decoding:
        if context.finished:
            return
        with ExitStack() as stack:
            memory, canvases = None, [context.canvas or [None] * context.max_new_tokens]
            if context.abilities.num_lengths and context.canvas is None:
                memory = stack.enter_context(context.sequence("encoder"))
                lengths = yield from _predict_lengths(context, memory)
                canvases = [[None] * length for length in lengths[: self.lengths]]
            candidates = [
                _Candidate(context, canvas, stack.enter_context(context.sequence()))
                for canvas in canvases
            ]
            best, step = candidates[0], 0
            while live := [candidate for candidate in candidates if candidate.masked]:
                results = yield from forward_all([c.request(step, memory) for c in live])
                step += 1
                shown = best
                for candidate, result in zip(live, results, strict=True):
                    candidate.fill(result)
                best = max(candidates, key=lambda candidate: candidate.score)
                for candidate in live:
                    candidate.mask(step, self.iterations)
                gone = range(len(best.board), len(shown.board))
                context.preview(best.places, [best.board[place] for place in best.places])
                context.preview(gone, [None] * len(gone))
        context.reveal(
            best.places,
            [best.tokens[place] for place in best.places],
            [best.logprobs[place] for place in best.places],
            alternatives=[best.others[place] for place in best.places if best.others],
            passes=[best.steps[place] for place in best.places],
        )
        context.end_at(len(best.board))


def _predict_lengths(
    context: Context, encoder: Sequence
) -> Generator[list[ForwardRequest], list[ForwardResult], list[int]]:
    """Encode the source; the lengths that the request allows, likeliest first."""
    with context.sequence() as reader:
        assert reader.memory is not None, "a network that predicts lengths reads a source"
        source = list(reader.memory.tokens)
    outputs = Outputs(token=False, logprob=False, top=context.abilities.num_lengths)
    result = yield from forward(
        encoder, source, 0, attention=BIDIRECTIONAL, rows=(0,), outputs=outputs
    )
    least, most = max(1, context.request.min_new_tokens), context.max_new_tokens
    ranked = [length for length, _ in result.top[0]]
    allowed = [n for n in ranked if least <= n <= most and context.fits(n)]
    return allowed or [min(max(ranked[0], least), most)]


class _Candidate:
    """A text of some length, in the making."""

    def __init__(self, context: Context, canvas: Seq[int | None], sequence: Sequence) -> None:
        self._context = context
        self._canvas = canvas
        self._sequence = sequence
        self._settled: list[int] = []
        self.board = list(canvas)
        """What stands, None where it is masked."""
        self.places = [place for place, token in enumerate(canvas) if token is None]
        """Those that the request left open."""
        self.tokens: dict[int, int] = {}
        self.logprobs: dict[int, float] = {}
        self.others: dict[int, list[tuple[int, float]]] = {}
        """Of all places, as they were last predicted, ..."""
        self.steps: dict[int, int] = {}
        """... and the passes that did it."""

    @property
    def masked(self) -> list[int]:
        """The places to be predicted."""
        return [place for place in self.places if self.board[place] is None]

    @property
    def score(self) -> float:
        """Mean log-probability."""
        return sum(self.logprobs.values()) / len(self.places)

    def request(self, step: int, memory: Sequence | None) -> ForwardRequest:
        """Predict what is masked."""
        context, masked = self._context, self.masked
        mask_token = context.abilities.mask_token
        assert mask_token is not None, "it was asked for"
        prompt = list(context.prompt)
        first = len(prompt) - context.abilities.token_shift
        return ForwardRequest(
            sequence=self._sequence,
            tokens=[
                *prompt,
                *(mask_token if t is None else t for t in self.board),
                *context.abilities.closing_tokens,
            ],
            start=0,
            noise=len(masked) / len(self.board),
            attention=BIDIRECTIONAL,
            rows=[first + place for place in masked],
            outputs=Outputs(top=context.request.logprobs),
            stream=f"pass {step} of length {len(self.board)}",
            canvas=CanvasRows(text=list(self.board), places=masked, length=len(self.board)),
            memory=memory,
        )

    def fill(self, result: ForwardResult) -> None:
        """Place the answers."""
        masked = self.masked
        for index, place in enumerate(masked):
            self.board[place] = self.tokens[place] = result.tokens[index]
            self.logprobs[place] = result.logprobs[index]
            self.steps[place] = self._context.num_passes
            if result.top:
                self.others[place] = result.top[index]

    def mask(self, step: int, iterations: int) -> None:
        """Mask again what the next pass is to predict; nothing once the text is done."""
        ranked = sorted(self.places, key=lambda place: self.logprobs[place])
        if step < iterations:
            num_masked = max(1, len(ranked) * (iterations - step) // iterations)
            order = ranked[: num_masked - 1 : -1]
            tokens = [self.tokens[place] for place in order]
            kept = self._context.compatible(self._canvas, order, tokens)
            again = [*ranked[:num_masked], *set(order).difference(order[i] for i in kept)]
        else:
            # What was found to go together keeps its place, so that there is ever more of it.
            order = [*self._settled, *(p for p in ranked[::-1] if p not in self._settled)]
            tokens = [self.tokens[place] for place in order]
            kept = self._context.compatible(self._canvas, order, tokens)
            self._settled = [order[index] for index in kept]
            again = [place for place in order if place not in self._settled]
        for place in again:
            self.board[place] = None
