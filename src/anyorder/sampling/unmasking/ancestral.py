"""Every open place by chance: with probability (t - s) / t on the way from level t to s.

The reverse process of masked diffusion itself (MDLM, arXiv 2406.07524; D3PM, arXiv 2107.03006).
SEDD's analytic sampler (Tweedie's formula, arXiv 2310.16834) gives every place the same chances.
Exact as steps grow, drawn at temperature 1: places revealed together are drawn independently. Steps
in which no place falls due cost no pass, since the network is not told the time.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import ClassVar

from anyorder.sampling.unmasking import Candidate, Commit, Step


@dataclass(frozen=True, kw_only=True)
class Ancestral(Commit):
    """Each place by chance, as the reverse process has it (SEDD: analytic)."""

    needs_steps: ClassVar[bool] = True

    @property
    def reads_chance(self) -> bool:
        """See Commit."""
        return True

    def choose(self, candidates: Seq[Candidate], step: Step) -> list[int]:
        """See Commit."""
        return [i for i, candidate in enumerate(candidates) if candidate.chance < step.share]
