"""What the sampler is asked for one row of logits, and what it answers: plain host values."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from anyorder.core.forward import Outputs, Patch
    from anyorder.core.request import Request
    from anyorder.sampling.canvas_guide import CanvasGuide
    from anyorder.sampling.guide import GuideState


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Row:
    """One row of logits to answer for."""

    request: Request
    """All controls are its fields."""
    outputs: Outputs
    """What to report. `Outputs.given` is ignored: this row's id is `given` below."""
    history: Seq[int]
    """Ids before the token to be drawn, prompt included; on a canvas all that stand on it. Read
    only where a control needs it."""
    num_prompt: int
    """`history[:num_prompt]` is the prompt; the rest was generated."""
    draw: tuple[int, ...]
    """Counter key of this draw, such as (choice, position, purpose)."""
    end_tokens: frozenset[int] = frozenset()
    """Ids that end the text; banned while fewer than `min_new_tokens` were generated."""
    banned: tuple[tuple[int, ...], ...] = ()
    """Tokenised bad words, each one or more ids."""
    forced: frozenset[int] = frozenset()
    """One of these follows, whatever the other controls say; empty: nothing is forced."""
    guide: GuideState | None = None
    given: int | None = None
    """Id whose log-probability is wanted."""
    canvas: Seq[int | None] | None = None
    """The new text with None at open places, where places are filled in any order."""
    place: int = 0
    """Which place of it this row is."""
    length: int = 0
    """Places of the new text in all; those beyond `canvas` are open."""
    canvas_guide: CanvasGuide | None = None
    blank: frozenset[int] = frozenset()
    """Ids that are no part of the text, see `CanvasRows`."""
    cuts_off: bool = False
    """Would an end token here cut off what must stay?"""

    @property
    def num_generated(self) -> int:
        """Tokens before this one in the new text."""
        if self.canvas is not None:
            return self.place
        return len(self.history) - self.num_prompt

    @property
    def bans_ends(self) -> bool:
        """May the text not end here yet?"""
        return self.cuts_off or self.num_generated < self.request.min_new_tokens


@dataclass(kw_only=True, eq=False, slots=True)
class RowResult:
    """The answer for one row; what was not asked for stays at its default."""

    token: int | None = None
    logprob: float | None = None
    entropy: float | None = None
    margin: float | None = None
    confidence: float | None = None
    """The token's log-probability in the processed distribution."""
    top: list[tuple[int, float]] = field(default_factory=list)
    """(id, log-probability), likeliest first; fewer than asked for where the rest is impossible."""
    best: list[tuple[int, float]] = field(default_factory=list)
    """(id, score), highest first; banned ids are left out."""
    given: float | None = None
    chance: float | None = None
    """Of the given id in the processed distribution."""
    draws: list[int] = field(default_factory=list)
    distribution: NDArray[np.float64] | None = None
    """Probabilities of the whole vocabulary, processed."""
    patch: Patch | None = None
    insertions: list[float] = field(default_factory=list)
    deletion: float | None = None
    error: str | None = None
    """Why this row has no answer, in one line; the other fields are then meaningless."""
