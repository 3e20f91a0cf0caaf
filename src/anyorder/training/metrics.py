"""What a training run reports: one JSON object a step, in a file without gaps or duplicates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One step of the optimiser."""

    step: int
    loss: float
    """Mean over the step's units (usually target tokens)."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens_per_second: float
    validation_loss: float | None = None
    """After the step, where it was measured."""
    extras: Mapping[str, float] = field(default_factory=dict)
    """The objective's own metrics, as means too."""


class MetricsFile:
    """metrics.jsonl of a run, opened to go on after step `done`."""

    def __init__(self, path: Path, *, done: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= done]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: StepMetrics) -> None:
        """Append a line."""
        line: dict[str, Any] = {
            "step": metrics.step,
            "loss": metrics.loss,
            "learning_rate": metrics.learning_rate,
            "gradient_norm": metrics.gradient_norm,
            "tokens_per_second": round(metrics.tokens_per_second, 1),
            **metrics.extras,
        }
        if metrics.validation_loss is not None:
            line["validation_loss"] = metrics.validation_loss
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """See that all lines are on the disk, before a checkpoint says that they are."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more will be written."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a process that is killed may leave half of one at the end."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
