"""Train a model as a recipe says, or go on with a run that was interrupted.

A recipe is a TOML file with the sections [model], [data], [objective], [optimizer], [schedule] and
[run]. The output folder holds model/ (for `-m` and for transformers), checkpoints/ and
metrics.jsonl. The same command on an existing output folder continues it from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.files import write_text
from anyorder.cli.terminal import note, progress
from anyorder.core.errors import InvalidRequest

if TYPE_CHECKING:
    from rich.progress import Progress

    from anyorder.training.metrics import StepMetrics

_LINE_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, where results go, the picture."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE.toml", help="what to train, on what, how")
    add("--output", metavar="DIR", help="output folder [the recipe's, or runs/ and its name]")
    add("--plot", metavar="FILE.svg", help="afterwards, draw loss and learning rate over the steps")


def run(arguments: argparse.Namespace) -> int:
    """Train, print the finished model's folder, draw."""
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None and plot.suffix != ".svg":
        raise InvalidRequest(f"the picture goes to a file ending in .svg, got {str(plot)!r}.")
    from anyorder.training.config import read_recipe

    recipe = read_recipe(Path(arguments.recipe))
    if arguments.output is not None:
        changed = dataclasses.replace(recipe.run, output=arguments.output)
        recipe = dataclasses.replace(recipe, run=changed)
    from anyorder.training.metrics import read_metrics
    from anyorder.training.trainer import Trainer

    watch = _Bar(recipe.run.steps) if sys.stderr.isatty() else _Lines(recipe.run.steps)
    preparing = progress()
    try:
        trainer = Trainer(recipe, watch=watch.show, progress=preparing)
    finally:
        preparing.close()
    if trainer.step:
        note(f"going on after step {trainer.step} of {recipe.run.steps}")
    try:
        folder = trainer.run()
    finally:
        watch.close()
        lines = read_metrics(trainer.output / "metrics.jsonl")
        if plot is not None and lines:
            from anyorder.evaluation.curves import curves_svg

            write_text(plot, curves_svg(Path(arguments.recipe).stem, lines))
    print(folder)
    return 0


class _Lines:
    """A plain line every ten seconds, and for every validation and the last step."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._due = time.monotonic()

    def show(self, metrics: StepMetrics) -> None:
        now = time.monotonic()
        last = metrics.step == self._num_steps
        if now < self._due and metrics.validation_loss is None and not last:
            return
        self._due = now + _LINE_SECONDS
        note(f"step {metrics.step} of {self._num_steps}: {_in_words(metrics)}")

    def close(self) -> None:
        """Nothing stays on the screen."""


class _Bar:
    """A bar with loss, speed and the time that remains."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._progress: Progress | None = None

    def show(self, metrics: StepMetrics) -> None:
        if self._progress is None:
            from rich import progress as bars
            from rich.console import Console

            self._progress = bars.Progress(
                bars.MofNCompleteColumn(),
                bars.BarColumn(),
                bars.TextColumn("{task.description}"),
                bars.TimeRemainingColumn(),
                console=Console(stderr=True, highlight=False, markup=False),
            )
            self._progress.start()
            self._progress.add_task("", total=self._num_steps, completed=metrics.step)
        (task,) = self._progress.task_ids
        self._progress.update(task, completed=metrics.step, description=_in_words(metrics))
        if metrics.validation_loss is not None:
            self._progress.console.print(f"step {metrics.step}: {_in_words(metrics)}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _in_words(metrics: StepMetrics) -> str:
    words = f"loss {metrics.loss:.4f}"
    if metrics.validation_loss is not None:
        words += f", validation {metrics.validation_loss:.4f}"
    return f"{words}, {metrics.tokens_per_second:,.0f} tokens/s"
