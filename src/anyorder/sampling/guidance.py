"""Contrasts of two models' (or two prompts') logits.

Classifier-free guidance for language models: Sanchez et al., "Stay on topic with classifier-free
guidance" (2023). Running the second prompt is the engine's business.

Shape suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch


def classifier_free(
    conditional_RV: torch.Tensor, unconditional_RV: torch.Tensor, scale: float
) -> torch.Tensor:
    """Scores that move from the unconditional towards (scale 1) and past (above 1) the conditional
    log-probabilities; not normalised. Scale 0 is the unconditional distribution."""
    conditional_RV = torch.log_softmax(conditional_RV, -1)
    unconditional_RV = torch.log_softmax(unconditional_RV, -1)
    return scale * (conditional_RV - unconditional_RV) + unconditional_RV
