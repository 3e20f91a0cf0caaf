"""Classifier-free guidance against transformers' processor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from anyorder.sampling.guidance import above_floor, classifier_free


class Unconditional:
    """A "model" with fixed logits."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, input_ids, **_):
        output = SimpleNamespace(logits=self.logits[:, None])
        output.get = lambda name, default: default
        return output


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 7.0])
def test_transformers(scale, random_logits):
    conditional, unconditional = random_logits(4), random_logits(4, seed=1)
    theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, Unconditional(unconditional))
    expected = theirs(torch.zeros(4, 1, dtype=torch.long), conditional)
    torch.testing.assert_close(
        classifier_free(conditional, unconditional, scale), expected, rtol=1e-6, atol=1e-6
    )


def test_scale_one_is_the_conditional_distribution(random_logits):
    conditional, unconditional = random_logits(4), random_logits(4, seed=1)
    torch.testing.assert_close(
        classifier_free(conditional, unconditional, 1.0), conditional.log_softmax(-1)
    )


def test_floor_keeps_what_min_p_would(random_logits):
    conditional, scores = random_logits(4), random_logits(4, seed=1)
    result = above_floor(scores, conditional, 0.1)
    chances = conditional.double().softmax(-1)
    kept = chances >= 0.1 * chances.amax(-1, keepdim=True)
    assert torch.equal(result, scores.masked_fill(~kept, -torch.inf))
    assert 4 < kept.sum() < kept.numel()
