"""Exposure bias as SVG: errors on gold and own prefixes by step, and how they add up."""

from __future__ import annotations

from anyorder.evaluation.curves import chart
from anyorder.evaluation.exposure import Exposure
from anyorder.evaluation.svg import Svg

_WIDTH, _LEFT, _RIGHT = 720.0, 70.0, 24.0
_GOLD, _OWN = "#2f6fed", "#e8590c"


def exposure_svg(title: str, exposure: Exposure) -> str:
    """The picture of a measurement."""
    svg = Svg(width=_WIDTH, title=f"exposure bias of {title}")
    num_steps = len(exposure.own_error)
    svg.text(_LEFT, 34, f"exposure bias of {title}", size=15, style="ink bold")
    what = f"{exposure.num_texts} texts behind prompts of {exposure.prompt_length} tokens"
    svg.text(_LEFT, 56, what, size=11, style="quiet")
    svg.text(_LEFT, 84, "error of a step, nats", size=12, style="quiet")
    svg.text(_LEFT + 190, 84, "on gold prefixes", size=12, style="now")
    svg.text(_LEFT + 330, 84, "on own prefixes", size=12, style="warm")
    curves = [(_points(exposure.gold_error), _GOLD), (_points(exposure.own_error), _OWN)]
    chart(svg, 98, 200, (1, num_steps), curves)
    excess = f"excess accumulated error, per cent: {exposure.excess[-1]:.1f}"
    error = f" \u00b1 {exposure.excess_standard_error[-1]:.1f} after {num_steps} steps"
    svg.text(_LEFT, 352, excess + error, size=12, style="quiet")
    chart(svg, 366, 140, (1, num_steps), [(_points(exposure.excess), _OWN)])
    svg.text(_WIDTH - _RIGHT, 544, "step", size=11, style="quiet", anchor="end")
    return svg.document(560)


def _points(values: tuple[float, ...]) -> list[tuple[float, float]]:
    return [(float(step), value) for step, value in enumerate(values, start=1)]
