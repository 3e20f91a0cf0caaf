"""Blockwise parallel decoding: further heads predict the next tokens, the same network checks them.

Stern et al., 2018 (arXiv:1811.03115), with the paper's merged passes: one pass checks the tokens
that the heads predicted in the pass before, and its heads, read out at the last token that stays,
predict the next ones. The longest prefix that agrees with the model's own choice is accepted, and
that choice itself follows it. Draws are keyed by position: at any temperature the text is the one
that `autoregressive` writes.

Not here: the paper's looser criteria (agreement with one of the top k, or within a distance), which
change the text, trees of predictions (`speculative` with Medusa heads), and the heads' training.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.forward import Check, Decoding, Outputs, forward
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Range


@dataclass(frozen=True, kw_only=True)
class Blockwise(Method):
    """Predict several tokens with as many heads, keep the longest prefix that agrees."""

    size: Annotated[
        int | None, Range(1, 64), "tokens predicted at once; none: one, and one for every head"
    ] = None

    needs: ClassVar[Needs] = Needs(heads=True)

    def decode(self, context: Context) -> Decoding:
        text = list(context.prompt)
        outputs = Outputs(heads=1, top=context.request.logprobs)
        with context.sequence() as sequence:
            result = yield from forward(sequence, text, 0, outputs=outputs)
            context.emit(result.tokens, result.logprobs, alternatives=result.top)
            text += result.tokens
            outputs = dataclasses.replace(
                outputs, token=False, logprob=False, accepted=Check(first=1)
            )
            while not context.finished:
                room = context.max_new_tokens - (len(text) - len(context.prompt)) - 1
                if self.size is not None:
                    room = min(room, self.size - 1)
                (heads,) = result.heads
                predictions = [best[0][0] for best in heads[:room]]
                result = yield from forward(
                    sequence, [text[-1], *predictions], len(text) - 1, outputs=outputs
                )
                verdict = result.verdict
                assert verdict is not None, "checked predictions have a verdict"
                context.emit(
                    verdict.tokens,
                    verdict.logprobs,
                    alternatives=verdict.top,
                    num_drafted=len(verdict.accepted),
                )
                text += verdict.tokens
