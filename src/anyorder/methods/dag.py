"""Directed acyclic decoding: one pass lays out a graph of vertices; a path through it is the text.

DA-Transformer (Huang et al., arXiv 2205.07459). The decoder is given several vertices for each
token of the source. Each predicts a token and where a path goes on from it; the text is what stands
along a path from the first vertex to the last. That path is found

- step by step, always the likeliest link, or with `joint` the link and the best token behind it
  that are likeliest together (the paper's greedy and lookahead decoding). With a temperature, links
  and tokens are drawn, which at 1 is the network's own distribution over texts (and their paths);
- or by dynamic programming (`path` = viterbi; Shao et al., arXiv 2210.05193): the likeliest path,
  or with `joint` the likeliest path and tokens together. The best one of every length is found, and
  of those the one whose log-probability over length to the power of `length_penalty` is highest.

What a token tells is its vertex's probability of it. A text longer than the limit is cut off. Not
here: beam search over paths that spell the same text, with or without a language model; controls
that depend on the text around a token; controls of links other than the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.forward import (
    CanvasRows,
    Decoding,
    ForwardResult,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method, Needs
from anyorder.core.options import Range
from anyorder.core.request import Request
from anyorder.sampling.paths import best_of_every_length, draw_path, step_by_step


@dataclass(frozen=True, kw_only=True)
class Dag(Method):
    """The whole text in one pass, as a path through a graph."""

    path: Annotated[Literal["steps", "viterbi"], "the best step each time, or the best path"] = (
        "steps"
    )
    joint: Annotated[bool, "look at the tokens on a path too, not at its links alone"] = True
    length_penalty: Annotated[
        float,
        Range(0, 10),
        "viterbi: paths' log-probabilities are divided by length to this power",
    ] = 1.0

    needs: ClassVar[Needs] = Needs(attention="bidirectional", mask_token=True, vertices="linked")

    def check(self, request: Request) -> None:
        """Only steps can be drawn."""
        self.refuse_history(request)
        if self.path == "viterbi":
            self.refuse_draws(request)

    def decode(self, context: Context) -> Decoding:
        with context.sequence() as sequence:
            source = sequence.memory
            assert source is not None, "a network with vertices reads a source"
            # The first vertex holds the token with which the text begins.
            num_vertices = context.abilities.vertices_per_token * (len(source.tokens) + 2)
            mask_token = context.abilities.mask_token
            assert mask_token is not None, "it was asked for"
            first = len(context.prompt) - 1
            result = yield from forward(
                sequence,
                [*context.prompt, *[mask_token] * (num_vertices - 1)],
                0,
                attention=BIDIRECTIONAL,
                rows=range(first, first + num_vertices),
                outputs=Outputs(top=context.request.logprobs, links=True),
                canvas=CanvasRows(text=[None] * num_vertices, places=range(num_vertices)),
            )
        path = self._path(context, result)
        context.emit(
            [result.tokens[vertex] for vertex in path],
            [result.logprobs[vertex] for vertex in path],
            alternatives=[result.top[vertex] for vertex in path] if result.top else (),
        )
        context.end_at(len(path))

    def _path(self, context: Context, result: ForwardResult) -> list[int]:
        """The vertices behind the first."""
        import torch

        scores_LL = result.links
        assert scores_LL is not None, "they were asked for"
        temperature = context.request.temperature
        if temperature > 0:
            return draw_path(scores_LL, temperature, lambda vertex: context.chance("link", vertex))
        if self.joint:
            scores_LL = scores_LL + torch.tensor(result.logprobs)
        if self.path == "steps":
            return step_by_step(scores_LL)
        _, path = max(
            (score / len(path) ** self.length_penalty, path)
            for score, path in best_of_every_length(scores_LL)
        )
        return path
