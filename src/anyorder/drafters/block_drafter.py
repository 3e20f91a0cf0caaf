"""A block drafter fills in all the next tokens at once: one bidirectional pass over masks.

DFlash (arXiv:2602.06036). The drafter's network reads the target's hidden states of the text as
context, and a block that begins with the last token; it guesses each masked token at its own
place. The guesses are its likeliest tokens, at any temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyorder.core.attention import Explicit
from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.forward import (
    NOTHING,
    Outputs,
    forward,
)

if TYPE_CHECKING:
    import torch

    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class BlockDrafter(Drafter):
    """A block of masked tokens after the text, filled in by one bidirectional pass."""

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        if "draft" not in models:
            return f"a DFlash drafter as draft model; the engine has {', '.join(models)}"
        draft = models["draft"]
        if draft.kind != "dflash":
            return f"a DFlash drafter as draft model; {draft.name} is of another kind"
        return None

    def wants(self, models: Mapping[str, Abilities]) -> Outputs:
        return Outputs(token=False, logprob=False, features=models["draft"].features)

    def cached_elsewhere(
        self, num_tokens: int, limit: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        draft = models["draft"]
        return {"draft": min(num_tokens + draft.block_size, draft.context_length)}

    def seconds(self, context: Context, limit: int) -> float:
        return context.pass_seconds(context.models["draft"].block_size, "draft") or 0.0

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return _Filling(context)


class _Filling(DraftSession):
    def __init__(self, context: Context) -> None:
        self._context = context
        self._abilities = context.models["draft"]
        self._sequence = context.sequence("draft")
        self._num_run = 0
        """Positions of the text that are in the cache as context."""
        self._num_seen = 0
        self._features: list[torch.Tensor] = []
        """Of the positions after those."""

    def expects(self) -> int:
        room = self._abilities.context_length
        if self._num_seen + self._abilities.block_size > room:
            self._context.note(f"the drafter's context of {room} is full: no drafts from there on.")
            return -1
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        import torch

        size, mask = self._abilities.block_size, self._abilities.mask_token
        assert mask is not None, "a block drafter has a mask token"
        start, past = self._num_run, len(text) - 1
        features: torch.Tensor | None = torch.cat(self._features)
        self._features, self._num_run = [], past
        if past - start > size:  # a prompt, which may be run in parts
            yield from forward(
                self._sequence,
                text[start:past],
                start,
                rows=(),
                outputs=NOTHING,
                conditioning=features,
            )
            start, features = past, None
        num_context, limit = past - start, min(limit, size - 1)
        num_tokens = num_context + size
        # New context as if run before, so that it stays when the block is discarded.
        before = [
            tuple(column <= row for column in range(num_tokens)) for row in range(num_context)
        ]
        first = num_context + 1
        result = yield from forward(
            self._sequence,
            [*text[start:], *[mask] * (size - 1)],
            start,
            attention=Explicit(mask=(*before, *[(True,) * num_tokens] * size)),
            rows=range(first, first + limit),
            outputs=Outputs(token=False, logprob=False, top=1),
            conditioning=features,
        )
        return Draft(tokens=[guesses[0][0] for guesses in result.top])

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
