"""Medusa: further heads of the target guess the tokens after the next, and a tree holds the best.

Cai et al., 2024 (arXiv:2401.10774). The heads do not see each other, so a path's chance is taken to
be the product of its tokens'. The tree is that of the `nodes` likeliest paths, found anew for every
text; the authors fix its shape beforehand, from average accuracies. With an adaptive length as many
of them are checked as pays.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from anyorder.core.drafter import NO_DRAFT, Draft, Drafter, DraftSession, Proposing
from anyorder.core.forward import Outputs
from anyorder.core.options import Range

if TYPE_CHECKING:
    import torch

    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class Medusa(Drafter):
    """Further prediction heads of the target guess the tokens after the next."""

    nodes: Annotated[int, Range(1, 256), "most tokens of a tree"] = 16
    top: Annotated[int, Range(1, 64), "guesses of each head"] = 10

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        target = models["target"]
        if not target.num_heads:
            return f"further prediction heads (Medusa); {target.name} has none"
        return None

    def wants(self, models: Mapping[str, Abilities]) -> Outputs:
        return Outputs(token=False, logprob=False, heads=self.top)

    def num_tokens(self, limit: int) -> int:
        count, level = 0, 1
        for _ in range(limit):
            level *= self.top
            count += level
        return min(self.nodes, count)

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return _Guesses(self)


class _Guesses(DraftSession):
    def __init__(self, options: Medusa) -> None:
        self._options = options
        self._heads: Seq[Seq[tuple[int, float]]] = ()

    def expects(self) -> int:
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        heads = self._heads[:limit]
        if not heads:
            return NO_DRAFT
        tokens: list[int] = []
        parents: list[int] = []
        chances: list[float] = []
        # Best first: (minus log-probability, order, parent, depth, which guess of its head). The
        # next sibling and the first child are no likelier, so both can wait until this one is out.
        order = 0
        waiting = [(-heads[0][0][1], order, -1, 0, 0)]
        while waiting and len(tokens) < self._options.nodes:
            cost, _, parent, depth, rank = heapq.heappop(waiting)
            token, logprob = heads[depth][rank]
            if rank + 1 < len(heads[depth]):
                order += 1
                sibling = cost + logprob - heads[depth][rank + 1][1]
                heapq.heappush(waiting, (sibling, order, parent, depth, rank + 1))
            if depth + 1 < len(heads):
                order += 1
                child = cost - heads[depth + 1][0][1]
                heapq.heappush(waiting, (child, order, len(tokens), depth + 1, 0))
            tokens.append(token)
            parents.append(parent)
            # Rounding may lift a sure token's chance over its parent's.
            chances.append(min(math.exp(-cost), chances[parent] if parent >= 0 else 1.0))
        return Draft(tokens=tokens, parents=parents, chances=chances)
        yield  # a generator that asks for no passes

    def observe(
        self,
        text: Seq[int],
        *,
        features: torch.Tensor | None,
        heads: Seq[Seq[tuple[int, float]]],
    ) -> None:
        self._heads = heads
