"""Autoregressive decoding: one token after the other, left to right.

The chain rule, read as a loop: p(x) = prod_i p(x_i | x_<i). Greedy at temperature 0, ancestral
sampling otherwise. One pass over the prompt (prefill), then one pass per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anyorder.core.forward import Decoding, Outputs, forward
from anyorder.core.method import Context, Method


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Method):
    """One token after the other, left to right."""

    scores_prompt: ClassVar[bool] = True

    def decode(self, context: Context) -> Decoding:
        outputs = Outputs(top=context.request.logprobs)
        tokens, start = list(context.prompt), 0
        with context.sequence() as sequence:
            if context.request.prompt_logprobs:
                rows, following = range(len(tokens) - 1), tuple(tokens[1:])
                if rows:
                    given = Outputs(token=False, logprob=False, given=following)
                    scored = yield from forward(sequence, tokens[:-1], 0, rows=rows, outputs=given)
                    context.report_prompt(scored.given)
                    tokens, start = tokens[-1:], len(rows)
            while not context.finished:
                result = yield from forward(sequence, tokens, start, outputs=outputs)
                start += len(tokens)
                tokens = result.tokens
                context.emit(tokens, result.logprobs, alternatives=result.top)
