"""Train a model as a recipe says, or go on with a run that was interrupted.

A recipe is a TOML file with the sections [model], [data], [objective], [optimizer], [schedule] and
[run], and where they are needed [teacher] and [adapter]. The output folder holds model/ (for `-m`
and for transformers), checkpoints/ and metrics.jsonl. The same command on an existing output folder
continues it from its last checkpoint, with any number of processes. torchrun may start the
processes too.
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

    from anyorder.training.config import Recipe
    from anyorder.training.metrics import StepMetrics

_LINE_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe, where results go, the picture."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE.toml", help="what to train, on what, how")
    add("--output", metavar="DIR", help="output folder [the recipe's, or runs/ and its name]")
    add("--plot", metavar="FILE.svg", help="afterwards, draw loss and learning rate over the steps")
    add("--processes", metavar="N", type=int, default=1, help="of this machine, for one run [1]")


def run(arguments: argparse.Namespace) -> int:
    """Train, print the finished model's folder, draw."""
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None and plot.suffix != ".svg":
        raise InvalidRequest(f"the picture goes to a file ending in .svg, got {str(plot)!r}.")
    if arguments.processes < 1:
        raise InvalidRequest(f"--processes must be at least 1, got {arguments.processes}.")
    recipe = _recipe(arguments.recipe, arguments.output)
    assert recipe.run.output is not None, "read_recipe gives every recipe an output folder"
    try:
        if arguments.processes == 1:
            folder = train(0, 1, None, arguments.recipe, arguments.output)
        else:
            from anyorder.training.distributed import launch

            given = arguments.recipe, arguments.output
            folder = launch(train, arguments.processes, *given)
    finally:
        if plot is not None:
            from anyorder.evaluation.curves import curves_svg
            from anyorder.training.metrics import read_metrics

            lines = read_metrics(Path(recipe.run.output) / "metrics.jsonl")
            if lines:
                write_text(plot, curves_svg(Path(arguments.recipe).stem, lines))
    if folder:
        print(folder)
    return 0


def _recipe(path: str, output: str | None) -> Recipe:
    from anyorder.training.config import read_recipe

    recipe = read_recipe(Path(path))
    if output is not None:
        recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, output=output))
    return recipe


def train(rank: int, size: int, meeting: Path | None, path: str, output: str | None) -> str:
    """What one of `size` processes does; the leading one shows it, and returns the finished model's
    folder."""
    from anyorder.training.distributed import team_of
    from anyorder.training.trainer import Trainer

    recipe = _recipe(path, output)
    with team_of(recipe, rank=rank, size=size, meeting=meeting) as team:
        if not team.leads:
            Trainer(recipe, team=team).run()
            return ""
        watch = _Bar(recipe.run.steps) if sys.stderr.isatty() else _Lines(recipe.run.steps)
        preparing = progress()
        try:
            trainer = Trainer(recipe, watch=watch.show, progress=preparing, team=team)
        finally:
            preparing.close()
        for line in trainer.left_out:
            note(line)
        if trainer.step:
            note(f"going on after step {trainer.step} of {recipe.run.steps}")
        try:
            return str(trainer.run())
        finally:
            watch.close()


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
