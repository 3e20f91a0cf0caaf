"""What goes to stderr: notes, cost reports, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from anyorder.core.request import Report, TraceEntry
from anyorder.model.progress import TerminalProgress

if TYPE_CHECKING:
    from rich.text import Text


def note(text: str) -> None:
    """One line for the user, not part of the output."""
    print(text, file=sys.stderr, flush=True)


def dim(text: str) -> None:
    """A line that steps back, on a terminal that can show it."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(text, style="dim")


def visible(text: str) -> str:
    """Generated text as it may go to a terminal: without control characters, which could move the
    cursor or worse. Other readers of stdout get every byte."""
    if not sys.stdout.isatty():
        return text
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def by_order(trace: Seq[TraceEntry]) -> Text:
    """A text's tokens coloured by the pass in which they became final, from red, the first, to
    blue, the last; what the request fixed is left as it is."""
    from rich.text import Text

    from anyorder.evaluation.svg import probability_color

    last = max((entry.step for entry in trace), default=1)
    text = Text()
    for entry in trace:
        shown = entry.text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
        place = (entry.step - 1) / max(last - 1, 1)
        text.append(visible(shown), style=probability_color(place) if entry.step else "")
    return text


def cost_line(report: Report) -> str:
    """What an answer cost, in one line."""
    seconds = report.prefill_seconds + report.decode_seconds
    parts = [
        f"{report.num_new_tokens} new tokens in {report.num_forward_passes} passes "
        f"({report.tokens_per_pass:.2f} per pass)",
        f"prompt {report.num_prompt_tokens} tokens, {report.num_cached_tokens} cached",
        f"prefill {report.prefill_seconds:.2f} s, decode {report.decode_seconds:.2f} s",
        f"{report.num_new_tokens / max(seconds, 1e-9):.1f} tokens/s",
        "exact" if report.exact else "approximate",
    ]
    if report.mean_accepted_length is not None:
        parts.insert(1, f"{report.mean_accepted_length:.2f} accepted at a time")
    if len(report.passes_by_role) > 1:
        counts = (f"{role} {count}" for role, count in report.passes_by_role.items())
        parts.insert(1, f"passes by model: {', '.join(counts)}")
    if report.num_preemptions:
        parts.append(f"preempted {report.num_preemptions} times")
    parts += [note.removesuffix(".") for note in report.notes]
    return "; ".join(parts)


class LineProgress:
    """Progress where there is no terminal: a plain line once a stage has taken a second, and then
    every ten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report progress; `done == total` ends the stage."""
        now = self._clock()
        due = self._due.setdefault(stage, now + 1)
        if done >= total:
            del self._due[stage]
        elif now >= due:
            self._due[stage] = now + 10
            note(f"{stage}: {100 * done // total}%")

    def close(self) -> None:
        """Nothing stays on the screen."""


def progress() -> TerminalProgress | LineProgress:
    """Bars on a terminal, plain lines elsewhere."""
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()
