"""CTC decoding: one pass says a token or a blank at each of many places; repeats are merged.

Connectionist temporal classification (Graves et al., ICML 2006), for translation in one pass as by
Libovicky and Helcl (arXiv 1811.04719). The decoder is given several places for each token of the
source; the mask token is the blank. With `width` 1 the text is that of the likeliest sequence of
places; with a temperature every place is drawn, which at 1 is the network's own distribution over
texts. With a greater `width` a beam search over texts sums the sequences that become the same
text, and the likeliest text found wins; its score is that sum's logarithm.

A token's log-probability is the highest of the places that were merged into it, or, in a search, of
those at which the text grew by it. A text longer than the limit is cut off. Not here: a language
model beside it, and controls that depend on the text around a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Range
from anyorder.core.request import Request
from anyorder.sampling.alignments import best_text, merge


@dataclass(frozen=True, kw_only=True)
class Ctc(Method):
    """The whole text in one pass, with blanks and repeats."""

    width: Annotated[
        int, Range(1, 64), "texts kept by the search; 1: none, the likeliest token of every place"
    ] = 1

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True, vertices="single")

    def check(self, request: Request) -> None:
        """A search draws nothing, and has no alternatives for tokens."""
        self.refuse_history(request)
        if self.width > 1:
            self.refuse_draws(request)
            if request.logprobs:
                raise InvalidRequest(
                    "ctc has no alternatives for the tokens of a search; leave logprobs at 0, or "
                    "width at 1."
                )

    def decode(self, context: Context) -> Decoding:
        blank = context.abilities.mask_token
        assert blank is not None, "it was asked for"
        searches = self.width > 1
        with context.sequence() as sequence:
            source = sequence.memory
            assert source is not None, "a network with places reads a source"
            # The first place holds the token with which the text begins, and says nothing.
            num_places = context.abilities.vertices_per_token * (len(source.tokens) + 2) - 1
            first = len(context.prompt)
            result = yield from forward(
                sequence,
                [*context.prompt, *[blank] * num_places],
                0,
                attention=BIDIRECTIONAL,
                rows=range(first, first + num_places),
                outputs=Outputs(
                    token=not searches,
                    logprob=not searches,
                    # One more than the texts kept, for the blank.
                    best=self.width + 1 if searches else 0,
                    top=context.request.logprobs,
                ),
            )
        if searches:
            score, tokens, logprobs = best_text(result.best, blank, width=self.width)
            context.emit(tokens, logprobs, score=score)
            context.end_at(len(tokens))
            return
        runs = merge(result.tokens, blank)
        peaks = [max(run, key=result.logprobs.__getitem__) for run in runs]
        context.emit(
            [result.tokens[place] for place in peaks],
            [result.logprobs[place] for place in peaks],
            alternatives=[result.top[place] for place in peaks] if result.top else (),
        )
        context.end_at(len(peaks))
