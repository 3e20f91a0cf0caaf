"""The picture of an inspection: who sees whom, whose prediction each token moved, and how far the
ways to compute the same text are apart."""

from __future__ import annotations

import math

from anyorder.core.attention import CAUSAL
from anyorder.evaluation.inspect import CHUNK, Inspection
from anyorder.evaluation.svg import Svg, probability_color, shorten

_WIDTH = 880
_MARGIN = 28
_SIDE = 236
"""Width of a mask."""
_GAP = 58
_FLOOR = 1e-9
"""Differences under this are drawn as if they were 0."""


def inspect_svg(inspection: Inspection) -> str:
    """An SVG file."""
    svg = Svg(width=_WIDTH, title=f"prefix consistency of {inspection.model}")
    _heading(svg, inspection)
    num_tokens = len(inspection.logprobs)  # the last token predicts nothing and is not run
    runs = [("one pass", num_tokens, 1)]
    passes = [comparison.num_passes for comparison in inspection.comparisons]
    runs += [(f"chunks of {CHUNK}", CHUNK, passes[0]), ("token by token", 1, passes[1])]
    for place, (name, size, num_passes) in enumerate(runs):
        left = _MARGIN + place * (_SIDE + _GAP)
        _mask(svg, left, 112, num_tokens, size)
        svg.text(left, 100, name, size=12, style="ink bold")
        svg.text(left + _SIDE, 100, _passes(num_passes), size=11, style="quiet", anchor="end")
    y = 112 + _SIDE + 22
    x = float(_MARGIN)
    for style, text in (("now", "seen in the same pass"), ("past", "read from the cache")):
        svg.rect(x, y - 9, 10, 10, style=style)
        x += 18 + svg.text(x + 16, y, text, size=11, style="quiet") + 24
    svg.text(_WIDTH - _MARGIN, y, "rows see columns", size=11, style="quiet", anchor="end")
    bottom = max(_influence(svg, y + 40, inspection), _differences(svg, y + 40, inspection))
    return svg.document(bottom + 24)


def _heading(svg: Svg, inspection: Inspection) -> None:
    x = _MARGIN + svg.text(_MARGIN, 42, "anyorder", size=17, style="ink bold")
    svg.text(x + 16, 42, f"prefix consistency of {shorten(inspection.model, 40)}", style="quiet")
    verdict, style = ("PASS", "good bold") if inspection.passed else ("FAIL", "bad bold")
    svg.text(_WIDTH - _MARGIN, 42, verdict, size=17, style=style, anchor="end")
    text = " ".join("".join(inspection.texts).split())
    svg.text(_MARGIN, 68, shorten(text, 104), size=12, style="quiet")


def _mask(svg: Svg, x: float, y: float, num_tokens: int, size: int) -> None:
    """Who sees whom if `size` tokens run at a time; runs of equal cells are one shape."""
    cell = _SIDE / num_tokens
    svg.rect(x, y, _SIDE, _SIDE, style="blank")
    for row, seen in enumerate(CAUSAL.visible(num_tokens).tolist()):
        cached = row // size * size
        for style, first, last in (("past", 0, cached), ("now", cached, num_tokens)):
            count = sum(seen[first:last])
            if count:
                gap = min(1.0, cell / 8)
                svg.rect(
                    x + first * cell, y + row * cell, count * cell - gap, cell - gap, style=style
                )


def _influence(svg: Svg, y: float, inspection: Inspection) -> float:
    """Heat map: rows are predictions, columns the token that was replaced."""
    num_tokens = len(inspection.tokens)
    labels = 110 if num_tokens <= 32 else 0
    side = 352 - labels
    left, top, cell = _MARGIN + labels, y + 34, side / num_tokens
    svg.text(_MARGIN, y, "measured influence", style="ink bold", size=12)
    later = _number(inspection.backward_influence)
    note = f"replacing a column's token moves a row's; later ones by {later}"
    svg.text(_MARGIN, y + 17, note, size=10.5, style="quiet")
    svg.rect(left, top, side, side, style="blank")
    for row, values in enumerate(inspection.influence):
        for replaced, value in enumerate(values):
            if value > _FLOOR or (math.isnan(value) is False and value > 0):
                # From 1e-6 to 10 nats on the color scale.
                shade = (math.log10(max(value, 1e-6)) + 6) / 7
                size = max(cell - min(1.0, cell / 8), 0.5)
                place = left + replaced * cell, top + (row + 1) * cell
                svg.rect(*place, size, size, fill=probability_color(1 - shade))
    if labels:
        for row, text in enumerate(inspection.texts):
            shown = shorten(text, 14)
            size = min(10.0, cell * 0.95)
            svg.text(
                left - 6,
                top + row * cell + cell * 0.8,
                shown,
                size=size,
                style="quiet",
                anchor="end",
            )
    return top + side


def _differences(svg: Svg, y: float, inspection: Inspection) -> float:
    """Difference to the parallel run at every position, on a logarithmic scale."""
    left, top, width, height = 470.0, y + 34, _WIDTH - _MARGIN - 470.0, 214.0
    decades = range(-9, 1)
    svg.text(left - 44, y, "difference to one pass, nats", style="ink bold", size=12)

    def at(value: float) -> float:
        place = math.log10(min(max(value, _FLOOR), 1.0))
        return top + place / decades[0] * height

    for decade in decades[::3]:
        svg.line([(left, at(10.0**decade)), (left + width, at(10.0**decade))], style="grid")
        svg.text(
            left - 8, at(10.0**decade) + 4, f"1e{decade}", size=10, style="quiet", anchor="end"
        )
    limit = at(inspection.tolerance)
    svg.line([(left, limit), (left + width, limit)], style="limit")
    text = f"tolerance {_number(inspection.tolerance)}"
    svg.text(left + width, limit - 5, text, size=10, style="bad", anchor="end")
    count = len(inspection.logprobs)
    bottom = top + height + 12
    marks = (("warm", 4.0), ("now", 3.0), ("cool", 2.0))  # equal values lie on top of each other
    for comparison, (style, radius) in zip(inspection.comparisons, marks, strict=True):
        for place, value in enumerate(comparison.differences):
            x = left + 6 + place / max(count - 1, 1) * (width - 12)
            svg.circle(x, at(value), radius, style=style)
        bottom += 20
        svg.circle(left - 38, bottom - 4, 4, style=style)
        svg.text(left - 26, bottom, comparison.name, size=12)
        text = f"at most {_number(comparison.largest)} in {_passes(comparison.num_passes)}"
        svg.text(left + width, bottom, text, size=12, style="quiet", anchor="end")
    return bottom


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _passes(count: int) -> str:
    return "1 pass" if count == 1 else f"{count} passes"
