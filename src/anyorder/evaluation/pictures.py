"""Pictures of a decode trace: which pass made each token final, and how sure the model was.

The text is laid out in reading order; each token's colour and the bar under it are its probability,
the number below is the pass. A second panel plots pass over position: a diagonal for left to right,
steps for several tokens a pass, a cloud for methods that fill in any order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from anyorder.core.request import Choice, Completion, Report, TraceEntry
from anyorder.evaluation.svg import CELL, Svg, cells, probability_color, shorten

WIDTH = 880
_MARGIN = 28
_SIZE = 15
_LINE = 50
"""Distance of two lines of tokens: the token, its bar, its pass."""
_PROMPT_LIMIT = 400
"""Characters of a prompt that are shown, its end rather than its beginning."""


def trace_svg(completion: Completion, *, model: str, prompt: str) -> str:
    """An SVG file of how an answer came about, all its choices below each other."""
    svg = Svg(width=WIDTH, title=f"decode trace: {completion.method} on {model}")
    y = _heading(svg, completion, model)
    for number, choice in enumerate(completion.choices, start=1):
        if len(completion.choices) > 1:
            y = _choice_heading(svg, y, number, choice)
        y = _tokens(svg, y, prompt, choice.trace)
    y = _order(svg, y + 14, completion)
    return svg.document(y + _MARGIN - 8)


# ----------------------------------------------------------------------------------------- heading
def _heading(svg: Svg, completion: Completion, model: str) -> float:
    x = _MARGIN + svg.text(_MARGIN, 42, "anyorder", size=17, style="ink bold")
    svg.text(x + 16, 42, f"{shorten(completion.method, 30)} on {shorten(model, 40)}", style="quiet")
    right, size = WIDTH - _MARGIN, 11
    for text, width in (("1", 14), ("", 116), ("0", 14), ("probability", 84)):
        if text:
            svg.text(right, 41, text, size=size, style="quiet", anchor="end")
        else:
            for part in range(22):
                color = probability_color(1 - part / 21)
                svg.rect(right - 5 * (part + 1), 33, 5.2, 9, fill=color)
        right -= width
    return 78


def _choice_heading(svg: Svg, y: float, number: int, choice: Choice) -> float:
    score = "" if choice.score is None else f"   score {choice.score:.4g}"
    svg.text(_MARGIN, y, f"choice {number}   {choice.finish_reason}{score}", style="quiet bold")
    return y + 30


# ---------------------------------------------------------------------------------------- the text
@dataclass(kw_only=True, eq=False)
class _Cursor:
    """Where the next word goes."""

    x: float
    y: float

    def room(self, width: float) -> None:
        """Begin a new line if `width` does not fit."""
        if self.x + width > WIDTH - _MARGIN and self.x > _MARGIN:
            self.feed()

    def feed(self) -> None:
        self.x, self.y = _MARGIN, self.y + _LINE


def _tokens(svg: Svg, y: float, prompt: str, trace: Seq[TraceEntry]) -> float:
    """Prompt and tokens in reading order; returns where the next thing may begin."""
    cursor = _Cursor(x=_MARGIN, y=y)
    shown = prompt if len(prompt) <= _PROMPT_LIMIT else "… " + prompt[-_PROMPT_LIMIT:]
    for line_number, line in enumerate(shown.split("\n")):
        if line_number:
            cursor.feed()
        for word in re.findall(r"\s+|[^\s]+", line):
            for part in (word[i : i + 40] for i in range(0, len(word), 40)):
                width = cells(part) * CELL * _SIZE
                cursor.room(width)
                svg.text(cursor.x, cursor.y, part, size=_SIZE, style="quiet", fitted=True)
                cursor.x += width
    cursor.x += 4 if cursor.x > _MARGIN else 0
    breaks = [re.fullmatch(r"(\\r|\\n)+", entry.text) is not None for entry in trace]
    for entry, is_break, next_is in zip(trace, breaks, [*breaks[1:], False], strict=True):
        text = entry.text.replace("\\n", "↵") if is_break else shorten(entry.text, 80)
        _token(svg, cursor, entry, text or "∅")
        if is_break and not next_is:
            cursor.feed()
    return cursor.y + (_LINE if cursor.x > _MARGIN else 0)


def _token(svg: Svg, cursor: _Cursor, entry: TraceEntry, text: str) -> None:
    width = cells(text) * CELL * _SIZE + 4
    cursor.room(width)
    x, y, color = cursor.x, cursor.y, probability_color(entry.probability)
    svg.open_group(tooltip=_tooltip(entry), step=entry.step)
    svg.rect(x, y - 17, width, 24, fill=color, opacity=0.18, radius=3)
    svg.rect(x, y + 7, max(width * entry.probability, 1), 3, fill=color)
    svg.text(x + 2, y, text, size=_SIZE, fitted=True)
    svg.text(x + width / 2, y + 22, str(entry.step), size=9.5, style="quiet", anchor="middle")
    svg.close_group()
    cursor.x += width + 3


def _tooltip(entry: TraceEntry) -> str:
    lines = f"{entry.text!r} (id {entry.token}), pass {entry.step}, p = {entry.probability:.4f}"
    lines += ", drafted" if entry.drafted else ""
    others = ", ".join(f"{token}: {p:.3f}" for token, p in entry.alternatives)
    return lines + (f"; ids by probability: {others}" if others else "")


# ------------------------------------------------------------------------------- order, and costs
def _order(svg: Svg, y: float, completion: Completion) -> float:
    """Pass over position for every token, and beside it what the answer cost."""
    left, top, width, height = _MARGIN + 34, y + 14, 400.0, 126.0
    num_positions = max(len(choice.trace) for choice in completion.choices)
    num_steps = max(e.step for choice in completion.choices for e in choice.trace)
    svg.text(left, y, "pass", size=11, style="quiet")
    svg.text(left + width + 8, top + height + 4, "position", size=11, style="quiet")
    svg.line([(left, top), (left, top + height), (left + width, top + height)])
    for value in sorted({1, (1 + num_steps) // 2, num_steps}):
        at = top + 8 + (value - 1) / max(num_steps - 1, 1) * (height - 16)
        svg.line([(left, at), (left + width, at)], style="grid")
        svg.text(left - 8, at + 4, str(value), size=10, style="quiet", anchor="end")
    for value in sorted({1, (1 + num_positions) // 2, num_positions}):
        at = left + 10 + (value - 1) / max(num_positions - 1, 1) * (width - 20)
        svg.text(at, top + height + 18, str(value), size=10, style="quiet", anchor="middle")
    radius = max(1.5, min(4.0, (width - 20) / num_positions / 2))
    for choice in completion.choices:
        for position, entry in enumerate(choice.trace):
            svg.open_group(tooltip=_tooltip(entry), step=entry.step)
            svg.circle(
                left + 10 + position / max(num_positions - 1, 1) * (width - 20),
                top + 8 + (entry.step - 1) / max(num_steps - 1, 1) * (height - 16),
                radius,
                fill=probability_color(entry.probability),
            )
            svg.close_group()
    _costs(svg, left + width + 84, y, completion.report)
    return top + height + 22


def _costs(svg: Svg, x: float, y: float, report: Report) -> None:
    rate = report.num_new_tokens / max(report.prefill_seconds + report.decode_seconds, 1e-9)
    rows = [
        ("new tokens", f"{report.num_new_tokens}"),
        ("forward passes", f"{report.num_forward_passes}"),
        ("tokens per pass", f"{report.tokens_per_pass:.2f}"),
        ("prompt tokens", f"{report.num_prompt_tokens} ({report.num_cached_tokens} cached)"),
        ("prefill", f"{report.prefill_seconds:.3f} s"),
        ("decode", f"{report.decode_seconds:.3f} s"),
        ("tokens per second", f"{rate:.1f}"),
    ]
    if report.mean_accepted_length is not None:
        rows.append(("accepted at a time", f"{report.mean_accepted_length:.2f}"))
    rows.append(("distribution", "exact" if report.exact else "approximate"))
    for number, (name, value) in enumerate(rows):
        at = y + 8 + number * 17.5
        svg.text(x, at, name, size=12, style="quiet")
        svg.text(WIDTH - _MARGIN, at, value, size=12, anchor="end")
