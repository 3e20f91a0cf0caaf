"""A smaller model with the same tokenizer drafts: the original speculative decoding.

Leviathan et al., 2023 (arXiv:2211.17192); Chen et al., 2023 (arXiv:2302.01318). With `branches`,
several tokens are drawn independently after each node of the first levels: an i.i.d. tree
(SpecInfer, arXiv:2305.09781). The model is the engine's role "draft", with a cache of its own, and
its passes are shared with whoever else drafts.

At temperature 0, and with token matching, which draws with the target's random numbers, siblings
would all be alike; branches are then the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import exp, inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from anyorder.core.attention import CAUSAL, Attention, Tree
from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.errors import InvalidRequest, RequestFailed
from anyorder.core.forward import (
    Outputs,
    forward,
)
from anyorder.core.options import Range

if TYPE_CHECKING:
    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence

_MOST_NODES = 256


@dataclass(frozen=True, kw_only=True)
class DraftModel(Drafter):
    """The engine's draft model writes the next tokens."""

    confidence: Annotated[
        float, Range(0, 1), "stop when a drafted token was less likely than this to the draft model"
    ] = 0.0
    branches: Annotated[
        str, 'tokens after each node, level by level, such as "3,2" for a tree; empty: a chain'
    ] = ""

    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = [part for part in self.branches.split(",") if part]
        if not all(part.strip().isdigit() and 1 <= int(part) <= 16 for part in parts):
            raise InvalidRequest(
                f'branches must be numbers from 1 to 16 such as "3,2", got {self.branches!r}.'
            )
        if self.num_tokens(len(parts)) > _MOST_NODES:
            raise InvalidRequest(
                f"branches {self.branches!r} make a tree of more than {_MOST_NODES} tokens; give "
                "fewer or smaller numbers."
            )

    @property
    def _branches(self) -> list[int]:
        return [int(part) for part in self.branches.split(",") if part]

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        if "draft" not in models:
            return f"a draft model; the engine has {', '.join(models)}"
        if models["draft"].kind != "decoder":
            return f"a draft model that runs by itself; {models['draft'].name} is a drafter's part"
        return None

    def num_tokens(self, limit: int) -> int:
        count, level = 0, 1
        for depth in range(limit):
            level *= self._branches[depth] if depth < len(self._branches) else 1
            count += level
        return count

    def cached_elsewhere(
        self, num_tokens: int, limit: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        if num_tokens > models["draft"].context_length:
            return {}
        return {"draft": num_tokens + self.num_scratch_tokens(limit)}

    def seconds(self, context: Context, limit: int) -> float:
        if len(context.prompt) + context.max_new_tokens > context.models["draft"].context_length:
            return inf
        each = context.pass_seconds(1, "draft")
        return limit * (each or 0.0)

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return _Drafting(self, context, coupled)


@dataclass(kw_only=True, eq=False)
class _Nodes:
    """A growing tree of proposals, level by level."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    proposals: list[Any] = field(default_factory=list)
    leaves: list[int] = field(default_factory=lambda: [-1])


class _Drafting(DraftSession):
    def __init__(self, options: DraftModel, context: Context, coupled: bool) -> None:
        self._options = options
        self._context = context
        self._sequence = context.sequence("draft")
        self._num_causal = 0
        """Leading cached tokens that were run causally; a tree's must not be taken for text."""
        self._samples = context.request.temperature > 0 and not coupled
        """Draw with random numbers of its own; else as the target would, or the likeliest."""

    def expects(self) -> int:
        # A short draft model cannot follow a long text.
        room = self._context.models["draft"].context_length
        longest = len(self._context.prompt) + self._context.max_new_tokens
        if longest > room:
            self._context.note(
                f"the draft model's context of {room} is too short for this request: no drafts."
            )
            return -1
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        branches = self._options._branches[:limit]
        start = self._start(text)
        if not branches:
            return (yield from self._chain(text, start, limit))
        return (yield from self._tree(text, start, branches, limit))

    def _start(self, text: Seq[int]) -> int:
        """How much of the text is cached already; at least its last token is run."""
        cached = self._sequence.tokens
        pairs = zip(cached[: self._num_causal], text, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), self._num_causal)
        return min(same, len(text) - 1)

    def _outputs(self, branch: int) -> Outputs:
        if self._samples:
            return Outputs(token=False, logprob=False, draws=branch, distribution=True)
        return Outputs(token=branch == 1, logprob=branch == 1, top=branch if branch > 1 else 0)

    def _chain(self, text: Seq[int], start: int, limit: int) -> Proposing:
        tokens: list[int] = []
        proposals: list[Any] = []
        new = list(text[start:])
        while len(tokens) < limit:
            try:
                result = yield from forward(
                    self._sequence,
                    new,
                    start,
                    outputs=self._outputs(1),
                    stream=None if self._samples else "target",
                )
            except RequestFailed:
                break  # nothing may follow, as after a guide's end
            start += len(new)
            self._num_causal = start
            if self._samples:
                token, proposal = result.draws[0][0], result.distributions[0]
                probability = float(proposal[token])
                proposals.append(proposal)
            else:
                token, probability = result.tokens[0], exp(result.logprobs[0])
            tokens.append(token)
            new = [token]
            # A proposal that was drawn must be checked: dropping it would bias the draw.
            if probability < self._options.confidence:
                break
        return Draft(tokens=tokens, proposals=proposals)

    def _tree(self, text: Seq[int], start: int, branches: list[int], limit: int) -> Proposing:
        """Level by level; each level runs the tree so far again, since siblings must not see each
        other and what is cached is seen by all."""
        nodes = _Nodes()
        self._num_causal = len(text)
        branch, new = branches[0], list(text[start:])
        attention: Attention = CAUSAL
        rows: list[int] | None = None
        for depth in range(limit):
            try:
                result = yield from forward(
                    self._sequence,
                    new,
                    start,
                    attention=attention,
                    rows=rows,
                    outputs=self._outputs(branch),
                    stream=None if self._samples else "target",
                )
            except RequestFailed:
                break  # nothing may follow one of the leaves
            leaves, first = nodes.leaves, len(nodes.tokens)
            for row, leaf in enumerate(leaves):
                if self._samples:
                    children = result.draws[row]
                elif result.top:
                    children = [token for token, _ in result.top[row]]
                else:
                    children = [result.tokens[row]]
                nodes.tokens += children
                nodes.parents += [leaf] * len(children)
                if self._samples:
                    nodes.proposals += [result.distributions[row]] * len(children)
            nodes.leaves = list(range(first, len(nodes.tokens)))
            branch = branches[depth + 1] if depth + 1 < len(branches) else 1
            new, start, rows = nodes.tokens, len(text), nodes.leaves
            attention = Tree(parents=tuple(nodes.parents))
        return Draft(tokens=nodes.tokens, parents=nodes.parents, proposals=nodes.proposals)

    def close(self) -> None:
        self._sequence.close()
