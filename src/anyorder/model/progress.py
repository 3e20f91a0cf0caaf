"""Progress bars on stderr, for whatever takes longer than a moment."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE_SECONDS = 0.5


class TerminalProgress:
    """Called with (stage, how much is done, how much there is); draws a bar per stage.

    Nothing shows for stages that end within half a second, and bars vanish when done.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report progress; `done == total` ends the stage."""
        started = self._since.setdefault(stage, time.monotonic())
        if done >= total:
            self._end(stage)
        elif stage in self._tasks and self._bars is not None:
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif time.monotonic() - started > _PATIENCE_SECONDS:
            self._tasks[stage] = self._show().add_task(stage, completed=done, total=total)

    def close(self) -> None:
        """Take away whatever still shows."""
        for stage in list(self._since):
            self._end(stage)

    def _end(self, stage: str) -> None:
        self._since.pop(stage, None)
        task = self._tasks.pop(stage, None)
        if task is not None and self._bars is not None:
            self._bars.remove_task(task)
            if not self._tasks:
                self._bars.stop()
                self._bars = None

    def _show(self) -> Progress:
        if self._bars is None:
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
        return self._bars


def default_progress() -> TerminalProgress | None:
    """Bars if stderr is a terminal, else None."""
    return TerminalProgress() if sys.stderr.isatty() else None
