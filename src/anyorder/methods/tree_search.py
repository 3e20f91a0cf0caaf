"""Tree search: look ahead in a tree of the likeliest continuations, follow the best path.

A search by score without a draft (top-k tree search). Below the text hangs a tree. Every pass runs
all of it, under tree attention in one sequence, gives each of its at most `width` leaves the
`branch` likeliest next tokens as children, and keeps the `width` best of the new leaves, by
log-probability added up from the text on. A leaf that ends the text stays a leaf and competes with
its sum as it is. A token on which all kept paths agree becomes final at once. If paths of `depth`
tokens do not agree on any, the first token of the best one becomes final and the others' paths are
dropped: a rolling horizon. When the best path ends, it becomes final as a whole.

So it maximises the probability of the next `depth` tokens (fewer where the text ends), a token at a
time, among the paths that it keeps; with `branch` the vocabulary and `width` no less than the
number of paths, among all of them. With `depth` 1, or `width` and `branch` 1, it is greedy. Unlike
`beam_search` it streams, holds one sequence, and returns one text.

Scores are the model's log-probabilities after penalties and bans, not renormalised. It searches:
temperature and truncation do not apply and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated

from anyorder.core.attention import CAUSAL, Attention, Tree
from anyorder.core.errors import InvalidRequest
from anyorder.core.forward import (
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method
from anyorder.core.options import Range
from anyorder.core.request import Request


@dataclass(frozen=True, kw_only=True)
class TreeSearch(Method):
    """Follow the likeliest path of a tree that reaches a few tokens ahead."""

    width: Annotated[int, Range(1, 256), "paths kept at every level"] = 4
    branch: Annotated[int, Range(1, 256), "likeliest tokens tried after each path"] = 4
    depth: Annotated[int, Range(1, 64), "tokens looked ahead before one becomes final"] = 5

    @property
    def num_scratch_tokens(self) -> int:
        return self.width * (self.depth - 1)

    def check(self, request: Request) -> None:
        self.refuse_draws(request)
        if request.n > 1:
            raise InvalidRequest(f"n is {request.n}, but tree_search finds one text; leave n at 1.")

    def decode(self, context: Context) -> Decoding:
        text, cached, score = list(context.prompt), 0, 0.0
        outputs = Outputs(
            token=False, logprob=False, best=self.branch, top=context.request.logprobs
        )
        paths = [_Path()]
        with context.sequence() as sequence:
            while not context.finished:
                generated = text[len(context.prompt) :]
                leaves = [path for path in paths if not path.ended]
                new = text[cached:]
                tokens, attention, rows = _tree(new, leaves)
                result = yield from forward(
                    sequence, tokens, cached, attention=attention, rows=rows, outputs=outputs
                )
                cached = len(text)
                alternatives = result.top or [[]] * len(leaves)
                paths = [path for path in paths if path.ended]
                for leaf, best, top in zip(leaves, result.best, alternatives, strict=True):
                    paths += [leaf.extended(token, gain, top) for token, gain in best]
                paths = sorted(paths, key=lambda path: -path.score)[: self.width]
                for path in paths:
                    made = [*generated, *path.tokens]
                    path.ended |= len(made) == context.max_new_tokens or context.ends(made)
                num_final = self._num_final(paths)
                if num_final:
                    final, _ = paths[0].split(num_final)
                    score += final.score
                    context.emit(final.tokens, final.logprobs, alternatives=final.top, score=score)
                    text += final.tokens
                    paths = [
                        path.split(num_final)[1]
                        for path in paths
                        if path.tokens[:num_final] == final.tokens
                    ]

    def _num_final(self, paths: Seq[_Path]) -> int:
        """How many tokens of the best path are settled."""
        best = paths[0]
        if best.ended:
            return len(best.tokens)
        levels = zip(*(path.tokens for path in paths), strict=False)
        agreed = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
        return max(agreed, int(len(best.tokens) >= self.depth))


@dataclass(kw_only=True, eq=False)
class _Path:
    """Tokens below the text, one below the other."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[Seq[tuple[int, float]]] = field(default_factory=list)
    """Alternatives to each token."""
    ended: bool = False

    @property
    def score(self) -> float:
        return sum(self.logprobs)

    def extended(self, token: int, gain: float, top: Seq[tuple[int, float]]) -> _Path:
        return _Path(
            tokens=[*self.tokens, token], logprobs=[*self.logprobs, gain], top=[*self.top, top]
        )

    def split(self, length: int) -> tuple[_Path, _Path]:
        """The first `length` tokens and the others."""
        first, rest = slice(length), slice(length, None)
        return (
            _Path(tokens=self.tokens[first], logprobs=self.logprobs[first], top=self.top[first]),
            _Path(
                tokens=self.tokens[rest],
                logprobs=self.logprobs[rest],
                top=self.top[rest],
                ended=self.ended,
            ),
        )


def _tree(text: Seq[int], leaves: Seq[_Path]) -> tuple[list[int], Attention, list[int]]:
    """What to run: the text's new tokens and below them the paths, equal beginnings once; and the
    offset of each path's last token."""
    tokens, parents = list(text), list(range(-1, len(text) - 1))
    known: dict[tuple[int, int], int] = {}
    rows = []
    for leaf in leaves:
        offset = len(text) - 1
        for token in leaf.tokens:
            parent, offset = offset, known.setdefault((offset, token), len(tokens))
            if offset == len(tokens):
                tokens.append(token)
                parents.append(parent)
        rows.append(offset)
    # A prompt alone is run causally: in chunks, and with what is cached of it.
    attention = CAUSAL if len(tokens) == len(text) else Tree(parents=tuple(parents))
    return tokens, attention, rows
