"""Contrasts of two models' (or two prompts') logits.

Classifier-free guidance for language models: Sanchez et al., "Stay on topic with classifier-free
guidance" (2023). Contrastive decoding: Li et al. (2022, arXiv:2210.15097) in the form of O'Brien
and Lewis (2023, arXiv:2309.09117), which is the same sum with a weaker model in the place of the
other prompt, and a floor under what the stronger one finds plausible. Running the second prompt or
model is the engine's business.

Shape suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch


def classifier_free(
    conditional_RV: torch.Tensor, unconditional_RV: torch.Tensor, scale: float
) -> torch.Tensor:
    """Scores that move from the unconditional towards (scale 1) and past (above 1) the conditional
    log-probabilities; not normalised. Scale 0 is the unconditional distribution."""
    conditional_RV = torch.log_softmax(conditional_RV, -1)
    unconditional_RV = torch.log_softmax(unconditional_RV, -1)
    return scale * (conditional_RV - unconditional_RV) + unconditional_RV


def above_floor(
    scores_RV: torch.Tensor, conditional_RV: torch.Tensor, floor: float
) -> torch.Tensor:
    """`scores_RV` without tokens whose conditional probability is under `floor` times that of the
    likeliest: a contrast alone would prefer nonsense that only the weaker model finds unlikely."""
    best_R1 = conditional_RV.amax(-1, keepdim=True)
    return scores_RV.masked_fill(conditional_RV < best_R1 + math.log(floor), -torch.inf)
