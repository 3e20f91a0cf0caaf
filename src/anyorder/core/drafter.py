"""A drafter: proposes tokens that a target model then checks, many in one pass.

One file a drafter in `drafters/`, found by its name like a method. Its fields are its options. A
drafter never touches the text: whatever it proposes, the target's acceptance rule decides, so a bad
drafter costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from anyorder.core.forward import ForwardRequest, ForwardResult, Outputs
from anyorder.core.options import validate

if TYPE_CHECKING:
    import torch

    from anyorder.core.method import Abilities, Context
    from anyorder.core.sequence import Sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """Proposed tokens: a chain after the text, or a tree."""

    tokens: Seq[int] = ()
    parents: Seq[int] | None = None
    """Index of each token's parent among `tokens`, -1 for children of the text's last token;
    parents come before children, likelier siblings before others. None: a chain."""
    proposals: Seq[Any] = ()
    """What each token was drawn from (`ForwardResult.distributions`); empty: none was drawn."""
    chances: Seq[float] = ()
    """How likely each token is to be accepted, as the drafter sees it, no child more than its
    parent; empty: it does not say. Unlikely ones are not checked where that does not pay."""
    grade: int = 0
    """Drafts of one grade are expected to do equally well; statistics are kept by grade."""


NO_DRAFT = Draft()

Proposing = Generator[list[ForwardRequest], list[ForwardResult], Draft]
"""What `DraftSession.propose` returns: it may ask for passes, and ends with a draft."""


class DraftSession(Protocol):
    """A drafter at work on one text. Subclass it: by default it ignores what it is told of the
    target's passes, and holds nothing to free."""

    def expects(self) -> int:
        """Grade of the draft that `propose` would make now; -1: it has none."""

    def propose(self, text: Seq[int], limit: int) -> Proposing:
        """A draft of what follows `text` (prompt and new tokens), at most `limit` tokens deep."""

    def observe(
        self,
        text: Seq[int],
        *,
        features: torch.Tensor | None,
        heads: Seq[Seq[tuple[int, float]]],
    ) -> None:
        """The target has run all of `text` but its last token. `features` are those of the tokens
        that it ran anew, `heads` the guesses of its prediction heads after its last row; both as
        `Drafter.wants` asked."""
        return

    def close(self) -> None:
        """Free sequences; the request is over."""
        return


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """Base of all drafters. A subclass's fields are its options."""

    draws: ClassVar[bool] = False
    """Does it draw tokens at random at a temperature above 0? Only then do the ratio rule and
    token matching differ in how many tokens they accept."""

    def __post_init__(self) -> None:
        validate(self)

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        """What it lacks of these models (by role), in words, or None."""
        return None

    def wants(self, models: Mapping[str, Abilities]) -> Outputs:
        """What the target must report besides (`Outputs.features`, `Outputs.heads`)."""
        return Outputs(token=False, logprob=False)

    def chance(self, grade: int) -> float:
        """The share of proposals of a grade that is expected to be accepted, before any was."""
        return 0.75

    def num_tokens(self, limit: int) -> int:
        """Most tokens of a draft that is `limit` deep."""
        return limit

    def num_scratch_tokens(self, limit: int) -> int:
        """Most tokens beyond the text that any of the models, the target included, caches at once
        for a draft that is `limit` deep."""
        return self.num_tokens(limit)

    def cached_elsewhere(
        self, num_tokens: int, limit: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        """By role, most tokens that models other than the target cache at once for a text of so
        many tokens and a draft that is `limit` deep."""
        return {}

    def seconds(self, context: Context, limit: int) -> float:
        """What drafting so deep takes, by measured passes; infinite where that is impossible."""
        return 0.0

    def open(self, context: Context, *, sequence: Sequence, coupled: bool) -> DraftSession:
        """Begin to work on one text. `sequence` is where the target runs it; whenever `propose` is
        called, all of the text but its last token is cached there, and the check starts at that
        token, so what a drafter runs from there on is discarded. `coupled`: draw with the target's
        random numbers (for token matching) instead of own ones."""
        raise AssertionError(f"{type(self).__name__} does not define open()")
