"""Semi-autoregressive decoding: several tokens a pass, from left to right.

Wang et al. (arXiv 1808.08583) draw a group of `size` tokens at once, given the text before it, and
then the next group. Their network is trained for one size. This does the same with any network that
fills in masks: behind the text stand as many masks as the group has tokens, and `ahead` more that
are not filled yet, and one pass, in which all see all, tells the group. Nothing says how long the
text is going to be, unlike in masked_diffusion with a window, whose masks reach to the end.

Groups of one token follow the chain rule; tokens of larger ones are drawn independently. Of a group
with tokens that may not stand together (banned sequences, n-grams) those before the first such
token stay. On a canvas, all fixed tokens are seen, and masks up to the last of them. Nothing is
cached: every token sees every other. Networks trained on blocks do this by block_diffusion.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

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
class SemiAutoregressive(Method):
    """Several tokens a pass, from left to right, at masks behind the text."""

    size: Annotated[int, Range(1, 1024), "tokens of a group"] = 2
    ahead: Annotated[int, Range(0), "masks that stand behind the group"] = 0

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True)
    exact: ClassVar[bool] = False
    fills_canvas: ClassVar[bool] = True
    may_begin: ClassVar[bool] = True

    @property
    def keeps_distribution(self) -> bool:
        """One token a pass is the chain rule."""
        return self.size == 1

    def decode(self, context: Context) -> Decoding:
        abilities, outputs = context.abilities, Outputs(top=context.request.logprobs)
        assert abilities.mask_token is not None, "refused without one"
        if abilities.block_size:
            context.note(
                f"{abilities.name} was trained on blocks of {abilities.block_size} tokens, which "
                "semi_autoregressive does not respect."
            )
        board = list(context.canvas or [None] * context.max_new_tokens)
        seen = max((place + 1 for place, token in enumerate(board) if token is not None), default=0)
        prompt = list(context.prompt)
        first = len(prompt) - abilities.token_shift
        with context.sequence() as sequence:
            for number in itertools.count():
                if context.finished:
                    break
                places = [place for place, token in enumerate(board) if token is None][: self.size]
                text = tuple(board[: max(seen, places[-1] + 1 + self.ahead)])
                result = yield from forward(
                    sequence,
                    [
                        *prompt,
                        *(abilities.mask_token if token is None else token for token in text),
                    ],
                    0,
                    attention=BIDIRECTIONAL,
                    rows=[first + place for place in places],
                    outputs=outputs,
                    stream=f"step {number}",
                    canvas=CanvasRows(text=text, places=places),
                )
                kept = context.compatible(board, places, result.tokens)
                count = sum(index == order for order, index in enumerate(kept))
                for place, token in zip(places[:count], result.tokens, strict=False):
                    board[place] = token
                context.reveal(
                    places[:count],
                    result.tokens[:count],
                    result.logprobs[:count],
                    alternatives=result.top[:count],
                )
