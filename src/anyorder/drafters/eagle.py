"""EAGLE-3: one layer on the target's hidden states grows a tree of likely continuations.

Li et al., 2025 (arXiv:2503.01840), with the dynamic tree of EAGLE-2 (arXiv:2406.16858): level by
level the `top` likeliest paths are continued by `top` tokens each; of all tokens that came up, the
`nodes` likeliest, by the product of probabilities along their paths, are proposed, and with an
adaptive length as many of them checked as pays. The authors' trees, for GPUs, have 60 and a top of
10; the defaults are for processors whose passes over more tokens take longer.

The drafter's sequence is shifted by one against the target's: at position i it reads token i + 1
and what the target made of token i, or, within the tree, its own output for the parent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from anyorder.core.attention import Tree
from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.forward import (
    Outputs,
    forward,
)
from anyorder.core.options import Range

if TYPE_CHECKING:
    import torch

    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence

_ROOT = -1


@dataclass(frozen=True, kw_only=True)
class Eagle(Drafter):
    """One layer that reads hidden states of the target grows a tree of likely continuations."""

    nodes: Annotated[int, Range(1, 256), "most tokens of a tree"] = 16
    top: Annotated[
        int, Range(1, 64), "paths continued at each level, and tokens tried for each"
    ] = 4

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        if "draft" not in models:
            return f"an EAGLE-3 drafter as draft model; the engine has {', '.join(models)}"
        draft = models["draft"]
        if draft.kind != "eagle":
            return f"an EAGLE-3 drafter as draft model; {draft.name} is of another kind"
        return None

    def wants(self, models: Mapping[str, Abilities]) -> Outputs:
        return Outputs(token=False, logprob=False, features=models["draft"].features)

    def num_tokens(self, limit: int) -> int:
        return min(self.nodes, self.top + self.top**2 * (limit - 1))

    def num_scratch_tokens(self, limit: int) -> int:
        return max(self.num_tokens(limit), self.top * (limit - 1))

    def cached_elsewhere(
        self, num_tokens: int, limit: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        num_read = min(num_tokens, models["draft"].context_length)
        return {"draft": num_read + self.num_scratch_tokens(limit)}

    def seconds(self, context: Context, limit: int) -> float:
        levels = [2, *(self.top * level for level in range(1, limit))]
        return sum(context.pass_seconds(size, "draft") or 0.0 for size in levels)

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return _Growing(self, context)


@dataclass(kw_only=True, eq=False)
class _Growth:
    """All tokens that came up so far; a node is its index, parents come before children."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    """Log-probability of the path from the root."""

    def sprout(self, parent: int, children: Seq[tuple[int, float]]) -> None:
        past = 0.0 if parent == _ROOT else self.scores[parent]
        for token, logprob in children:
            self.tokens.append(token)
            self.parents.append(parent)
            # Rounding may lift a sure token's log-probability above 0, and so over its parent.
            self.scores.append(past + min(logprob, 0.0))

    def best(self, count: int, first: int = 0) -> list[int]:
        """The likeliest nodes from `first` on, in order of appearance."""
        ranked = sorted(range(first, len(self.tokens)), key=lambda node: -self.scores[node])
        return sorted(ranked[:count])

    def paths(self, nodes: Seq[int]) -> list[int]:
        """These nodes and all before them on their paths, in order of appearance."""
        found = set(nodes)
        for node in nodes:
            parent = self.parents[node]
            while parent != _ROOT and parent not in found:
                found.add(parent)
                parent = self.parents[parent]
        return sorted(found)

    def links(self, nodes: Seq[int]) -> tuple[int, ...]:
        """The parents of these nodes, by their places among them."""
        place = {node: index for index, node in enumerate(nodes)}
        return tuple(place.get(self.parents[node], _ROOT) for node in nodes)


class _Growing(DraftSession):
    def __init__(self, options: Eagle, context: Context) -> None:
        self._options = options
        self._context = context
        self._room = context.models["draft"].context_length
        self._sequence = context.sequence("draft")
        self._num_run = 0
        """Positions of the text that are in the drafter's cache."""
        self._num_seen = 0
        self._features: list[torch.Tensor] = []
        """Of the positions after those."""

    def expects(self) -> int:
        if self._num_seen > self._room:
            self._context.note(
                f"the drafter's context of {self._room} is full: no drafts from there on."
            )
            return -1
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        import torch

        top, nodes = self._options.top, self._options.nodes
        # Its output before the final norm is what its own continuations are conditioned on.
        outputs = Outputs(token=False, logprob=False, top=top, features=(1,))
        growth, end = _Growth(), len(text) - 1
        result = yield from forward(
            self._sequence,
            text[self._num_run + 1 :],
            self._num_run,
            outputs=outputs,
            conditioning=torch.cat(self._features),
        )
        self._features, self._num_run = [], end
        assert result.features is not None, "they were asked for"
        hidden = {_ROOT: result.features[-1]}
        growth.sprout(_ROOT, result.top[0])
        level = 0
        for _ in range(1, limit):
            beam = growth.best(top, level)
            if not set(beam) & set(growth.best(nodes)):
                break  # what comes after them is no likelier
            level = len(growth.tokens)
            run = growth.paths(beam)
            result = yield from forward(
                self._sequence,
                [growth.tokens[node] for node in run],
                end,
                attention=Tree(parents=growth.links(run)),
                rows=[run.index(node) for node in beam],
                outputs=outputs,
                conditioning=torch.stack([hidden[growth.parents[node]] for node in run]),
            )
            assert result.features is not None, "they were asked for"
            hidden |= dict(zip(run, result.features, strict=True))
            for node, children in zip(beam, result.top, strict=True):
                growth.sprout(node, children)
        chosen = growth.best(nodes)
        return Draft(
            tokens=[growth.tokens[node] for node in chosen],
            parents=growth.links(chosen),
            chances=[math.exp(growth.scores[node]) for node in chosen],
        )

    def observe(
        self,
        text: Seq[int],
        *,
        features: torch.Tensor | None,
        heads: Seq[Seq[tuple[int, float]]],
    ) -> None:
        assert features is not None, "it asks for features"
        self._features.append(features)
        self._num_seen = len(text)

    def close(self) -> None:
        self._sequence.close()
