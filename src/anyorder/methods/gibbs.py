"""Gibbs sampling: draw one token after the other anew, given all the others, sweep after sweep.

Wang & Cho (arXiv 1902.04094), for any network that fills in masks. The text starts as masks; each
step masks one place and draws its token given what stands elsewhere, so that the first sweep writes
the text and the later ones revise it. Where the network's conditionals fit together, as those of
one joint distribution, texts are draws from that distribution in the limit of many sweeps. Those of
trained networks hardly ever do, so that order and number of sweeps are part of what is sampled.

The first `burn_in` sweeps draw from the whole distribution, at the request's temperature; the later
ones also truncate it (top_k, top_p, min_p, typical_p) as the request says. At temperature 0 the
text climbs until a whole sweep changes nothing. Every token takes a pass, so a sweep takes as many
passes as there are places. Not here: drawing several places at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.forward import (
    CanvasRows,
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Range


@dataclass(frozen=True, kw_only=True)
class Gibbs(Method):
    """Draw one token after the other anew, given all the others."""

    sweeps: Annotated[int, Range(1, 1000), "sweeps over the text after the first ones"] = 5
    burn_in: Annotated[
        int, Range(0, 1000), "sweeps at the start that draw from the whole distribution"
    ] = 5
    order: Annotated[
        Literal["random", "sequential"], "of the places: drawn for each sweep, or left to right"
    ] = "random"

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True)
    exact: ClassVar[bool] = False
    fills_canvas: ClassVar[bool] = True
    may_begin: ClassVar[bool] = True

    def decode(self, context: Context) -> Decoding:
        if context.finished:
            return
        mask_token, request = context.abilities.mask_token, context.request
        assert mask_token is not None, "it was asked for"
        prompt, closing = list(context.prompt), context.abilities.closing_tokens
        first = len(prompt) - context.abilities.token_shift
        whole = dataclasses.replace(request, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
        outputs = Outputs(top=request.logprobs)
        board = list(context.canvas or [None] * context.max_new_tokens)
        places = [place for place, token in enumerate(board) if token is None]
        logprobs: dict[int, float] = {}
        others: dict[int, list[tuple[int, float]]] = {}
        steps: dict[int, int] = {}
        with context.sequence() as sequence:
            for sweep in range(self.burn_in + self.sweeps):
                before = list(board)
                for place in self._ordered(context, places, sweep):
                    board[place] = None
                    result = yield from forward(
                        sequence,
                        [*prompt, *(mask_token if t is None else t for t in board), *closing],
                        0,
                        attention=BIDIRECTIONAL,
                        rows=(first + place,),
                        outputs=outputs,
                        sampling=whole if sweep < self.burn_in else None,
                        stream=f"sweep {sweep}",
                        canvas=CanvasRows(text=list(board), places=(place,)),
                        noise=board.count(None) / len(board),
                    )
                    (board[place],), (logprobs[place],) = result.tokens, result.logprobs
                    steps[place] = context.num_passes
                    if result.top:
                        (others[place],) = result.top
                    context.preview([place], result.tokens)
                if request.temperature == 0 and board == before:
                    break
        context.reveal(
            places,
            [token for place in places if (token := board[place]) is not None],
            [logprobs[place] for place in places],
            alternatives=[others[place] for place in places if others],
            passes=[steps[place] for place in places],
        )

    def _ordered(self, context: Context, places: list[int], sweep: int) -> list[int]:
        """The places in the order of a sweep."""
        if self.order == "sequential":
            return places
        return sorted(places, key=lambda place: context.chance("order", sweep, place))
