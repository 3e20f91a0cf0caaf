"""A training run's curves as SVG: loss, validation loss and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from anyorder.evaluation.svg import Svg

_WIDTH, _LEFT, _RIGHT = 720.0, 70.0, 24.0
_LOSS = "#2f6fed"
_HELD_OUT = "#e8590c"
_MOST_POINTS = 1000


def curves_svg(title: str, lines: Seq[Mapping[str, Any]]) -> str:
    """The picture of a metrics file's lines, at least one."""
    svg = Svg(width=_WIDTH, title=f"training curves of {title}")
    svg.text(_LEFT, 34, title, size=15, style="ink bold")
    losses = _points(lines, "loss")
    held_out = _points(lines, "validation_loss")
    svg.text(_LEFT, 58, f"loss {losses[-1][1]:.4f}", size=12, style="now")
    if held_out:
        svg.text(_LEFT + 130, 58, f"validation {held_out[-1][1]:.4f}", size=12, style="warm")
    steps = (lines[0]["step"], lines[-1]["step"])
    chart(svg, 72, 240, steps, [(_thinned(losses), _LOSS), (held_out, _HELD_OUT)])
    svg.text(_LEFT, 352, "learning rate", size=12, style="quiet")
    rates = _thinned(_points(lines, "learning_rate"))
    chart(svg, 366, 80, steps, [(rates, _LOSS)])
    svg.text(_WIDTH - _RIGHT, 484, "step", size=11, style="quiet", anchor="end")
    return svg.document(500)


Points = list[tuple[float, float]]


def _points(lines: Seq[Mapping[str, Any]], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines if name in line]


def _thinned(points: Points) -> Points:
    """Means over stretches of steps where there are more than can be seen."""
    size = -(-len(points) // _MOST_POINTS)
    stretches = (points[start : start + size] for start in range(0, len(points), size))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in stretches]


def chart(
    svg: Svg, top: float, height: float, steps: tuple[int, int], curves: list[tuple[Points, str]]
) -> None:
    """Curves with their axes, from the first to the last of `steps`; at least one has points."""
    values = [value for points, _ in curves for _, value in points]
    low, high = min(values), max(values)
    span, width = (high - low) or 1.0, _WIDTH - _LEFT - _RIGHT
    first, last = steps

    def place(step: float, value: float) -> tuple[float, float]:
        share = (step - first) / max(last - first, 1)
        return _LEFT + width * share, top + height * (1.0 - (value - low) / span)

    for number in range(5 if height > 100 else 3):
        value = low + span * number / (4 if height > 100 else 2)
        _, y = place(first, value)
        svg.line([(_LEFT, y), (_LEFT + width, y)], style="grid")
        svg.text(_LEFT - 8, y + 4, f"{value:.3g}", size=10, style="quiet", anchor="end")
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = place(step, low)
        svg.text(x, top + height + 16, str(step), size=10, style="quiet", anchor=anchor)
    for points, color in curves:
        places = [place(step, value) for step, value in points]
        if len(places) > 1:
            svg.line(places, stroke=color)
        for x, y in places if len(places) < 40 else ():
            svg.circle(x, y, 2.5, fill=color)
