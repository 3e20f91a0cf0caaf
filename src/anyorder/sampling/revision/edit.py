"""Replace tokens that the network would now write differently (token-to-token editing).

LLaDA2.1 (arXiv 2602.08676): where the network's answer at a filled place differs from what stands
there and is likely enough, it replaces it; after the last place is filled, passes go on until
nothing changes, `most` at most. For networks trained to judge tokens that they see: the plain bound
of masked diffusion says nothing about places that are not masked.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Annotated, ClassVar

from anyorder.core.options import Range
from anyorder.sampling.revision import Revision
from anyorder.sampling.unmasking import Candidate


@dataclass(frozen=True, kw_only=True)
class Edit(Revision):
    """Replace tokens that the network would now write differently."""

    needs_steps: ClassVar[bool] = False
    rereads: ClassVar[bool] = True

    level: Annotated[float, Range(0.0, 1.0), "smallest probability of the new token"] = 0.5
    most: Annotated[int, Range(0), "passes after the last place is filled"] = 16

    def goes_on(self, number: int, steps: int | None, num_full: int) -> bool:
        """See Revision."""
        return num_full < self.most

    def replace(self, standing: Seq[Candidate], answers: Seq[Candidate]) -> list[int]:
        """See Revision."""
        pairs = enumerate(zip(standing, answers, strict=True))
        return [
            index
            for index, (old, new) in pairs
            if new.token != old.token and new.probability >= self.level
        ]
