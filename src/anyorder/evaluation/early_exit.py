"""What early exit costs and saves: accuracy and work of a classifier over thresholds of doubt.

FastBERT (arXiv 2004.02178) calls the threshold "speed": a text leaves after the first layer whose
classifier is less uncertain. Work is counted in FLOPs, as the paper does: additions and
multiplications of matrix products and attention, the classifiers' own included, for each text's own
length. Time is not measured; on a GPU, texts that leave early also have to be taken out of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from anyorder.core.errors import UserError


class Verdict(Protocol):
    """What became of a text."""

    @property
    def label(self) -> str: ...

    @property
    def num_layers(self) -> int:
        """That were run."""

    @property
    def flops(self) -> int: ...


class EarlyExit(Protocol):
    """A classifier with exits; `model.classifier.Classifier` is one."""

    def classify(
        self, documents: Sequence[Sequence[int]], *, threshold: float
    ) -> Sequence[Verdict]:
        """A verdict on each text; a threshold of 0 runs all layers and no exit."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text and what it is."""

    tokens: tuple[int, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One threshold."""

    threshold: float
    accuracy: float
    mean_layers: float
    flops: float
    """Per text."""
    speedup: float
    """FLOPs without exits, over these."""


def curve(
    classifier: EarlyExit,
    examples: Sequence[Example],
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *,
    batch_size: int = 32,
) -> list[Point]:
    """The point without exits (threshold 0), then one for each threshold."""
    if not examples:
        raise UserError("there are no examples to classify.")
    points: list[Point] = []
    for threshold in (0.0, *thresholds):
        right = layers = flops = 0
        for start in range(0, len(examples), batch_size):
            part = examples[start : start + batch_size]
            texts = [example.tokens for example in part]
            verdicts = classifier.classify(texts, threshold=threshold)
            for example, verdict in zip(part, verdicts, strict=True):
                right += verdict.label == example.label
                layers += verdict.num_layers
                flops += verdict.flops
        points.append(
            Point(
                threshold=threshold,
                accuracy=right / len(examples),
                mean_layers=layers / len(examples),
                flops=flops / len(examples),
                speedup=(points[0].flops if points else flops / len(examples))
                * len(examples)
                / flops,
            )
        )
    return points
