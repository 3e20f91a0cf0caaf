"""Autoregressive decoding: one token after the other, left to right.

The chain rule, read as a loop: p(x) = prod_i p(x_i | x_<i). Greedy at temperature 0, ancestral
sampling otherwise. One pass over the prompt (prefill), then one pass per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

from anyorder.core.forward import Decoding, ForwardRequest, ForwardResult, Outputs, forward
from anyorder.core.method import Context, Method
from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class Autoregressive(Method):
    """One token after the other, left to right."""

    scores_prompt: ClassVar[bool] = True

    def decode(self, context: Context) -> Decoding:
        outputs = Outputs(top=context.request.logprobs)
        tokens, start = list(context.prompt), 0
        with context.sequence() as sequence:
            if context.request.embedding != "none":
                vector = yield from self.embed(sequence, tokens, context.request.embedding)
                context.report_embedding(vector)
                tokens, start = tokens[-1:], len(tokens) - 1
            if context.request.prompt_logprobs:
                tokens, start = list(context.prompt), 0
                rows, following = range(len(tokens) - 1), tuple(tokens[1:])
                if rows:
                    given = dataclasses.replace(
                        outputs, token=False, logprob=False, given=following
                    )
                    scored = yield from forward(sequence, tokens[:-1], 0, rows=rows, outputs=given)
                    context.report_prompt(scored.given, scored.top)
                    tokens, start = tokens[-1:], len(rows)
            while not context.finished:
                result = yield from forward(sequence, tokens, start, outputs=outputs)
                start += len(tokens)
                tokens = result.tokens
                context.emit(tokens, result.logprobs, alternatives=result.top)

    def embed(
        self, sequence: Sequence, tokens: list[int], pooling: str
    ) -> Generator[list[ForwardRequest], list[ForwardResult], list[float]]:
        """The prompt as a vector."""
        rows = range(len(tokens)) if pooling == "mean" else None
        states = Outputs(token=False, logprob=False, hidden=True)
        result = yield from forward(sequence, tokens, 0, rows=rows, outputs=states)
        assert result.hidden is not None, "hidden states were asked for"
        vector: list[float] = result.hidden.double().mean(0).tolist()
        return vector
