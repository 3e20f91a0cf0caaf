"""Own block: the target itself fills in a block of masks behind the text, in one pass.

For networks that read text from left to right and denoise blocks behind it (Set Block Decoding,
arXiv 2509.04185; TiDAR, arXiv 2511.08923; see `training/objectives/block_diffusion.py`). The
block's first token is the one that the network writes token by token, told by the text's last one
in the same pass; the others are the likeliest at their masks, all at once. So a draft costs a pass,
and so does its check: it pays where more than two of its tokens are accepted. It needs no other
network, and no memory but the block's.

Not here: TiDAR's pass that checks one draft and makes the next ones for each of its outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from anyorder.core.attention import TextThenBlocks
from anyorder.core.drafter import Draft, Drafter, DraftSession, Proposing
from anyorder.core.forward import (
    Outputs,
    forward,
)
from anyorder.core.options import Range

if TYPE_CHECKING:
    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class OwnBlock(Drafter):
    """Masks behind the text, filled in by the target in one pass."""

    block_size: Annotated[
        int | None, Range(1), "masks behind the text; none: what the target was trained with"
    ] = None

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        target = models["target"]
        if target.mask_token is None or target.clean_text != "causal":
            return (
                "a model that denoises blocks behind text it reads from left to right; "
                f"{target.name} does not"
            )
        return None

    def num_scratch_tokens(self, limit: int) -> int:
        return limit + 1

    def seconds(self, context: Context, limit: int) -> float:
        return context.pass_seconds(1 + self._size(context, limit)) or 0.0

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        return _Filling(self, context, sequence)

    def _size(self, context: Context, limit: int) -> int:
        return min(self.block_size or context.abilities.block_size, limit)


class _Filling(DraftSession):
    def __init__(self, options: OwnBlock, context: Context, sequence: Sequence) -> None:
        self._options, self._context, self._sequence = options, context, sequence
        mask_token = context.abilities.mask_token
        assert mask_token is not None, "refused without one"
        self._mask_token = mask_token

    def expects(self) -> int:
        return 0

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        size = self._options._size(self._context, limit)
        result = yield from forward(
            self._sequence,
            [text[-1], *[self._mask_token] * size],
            len(text) - 1,
            attention=TextThenBlocks(num_text=1, size=size),
            # The text's last token tells the first place, and with a shift each mask the next one.
            rows=self._rows(size),
            outputs=Outputs(token=False, logprob=False, top=2),
        )
        # The mask token is none of the text's.
        likeliest = [
            next(token for token, _ in top if token != self._mask_token) for top in result.top
        ]
        return Draft(tokens=likeliest)

    def _rows(self, size: int) -> Seq[int]:
        if self._context.abilities.token_shift:
            return range(size)
        return (0, *range(2, size + 1))
