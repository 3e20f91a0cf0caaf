"""How far one distribution over the vocabulary is from another, row by row.

Forward: KL(teacher, student), which makes a student cover all that its teacher finds likely.
Reverse: KL(student, teacher), which makes it keep to what is likely (MiniLLM, arXiv 2306.08543).
Tokens that the student cannot score (logits of minus infinity) are taken from the teacher too, and
the rest of its distribution is scaled up.

Shape suffixes: M rows, V vocabulary; further dimensions between them are kept.
"""

from __future__ import annotations

from typing import Literal

import torch

Divergence = Literal["forward", "reverse"]


def divergence(
    student_MV: torch.Tensor,
    teacher_MV: torch.Tensor,
    kind: Divergence = "forward",
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Nats [M] between the distributions of two tables of logits, both at this temperature."""
    scored_MV = student_MV > -torch.inf
    ours_MV = (student_MV / temperature).log_softmax(dim=-1)
    theirs_MV = teacher_MV.masked_fill(~scored_MV, -torch.inf) / temperature
    theirs_MV = theirs_MV.log_softmax(dim=-1)
    # Where there is no probability, 0 times a finite number in place of minus infinity.
    ours_MV = ours_MV.masked_fill(~scored_MV, 0.0)
    theirs_MV = theirs_MV.masked_fill(~scored_MV, 0.0)
    likely_MV = theirs_MV if kind == "forward" else ours_MV
    weight_MV = likely_MV.exp().masked_fill(~scored_MV, 0.0)
    gap_MV = theirs_MV - ours_MV if kind == "forward" else ours_MV - theirs_MV
    return (weight_MV * gap_MV).sum(dim=-1)
