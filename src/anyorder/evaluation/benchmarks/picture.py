"""Bars of what every side reached, work by work, as SVG."""

from __future__ import annotations

import statistics

from anyorder.evaluation.benchmarks.results import Results
from anyorder.evaluation.benchmarks.sides import Side, is_peer
from anyorder.evaluation.benchmarks.works import WORKS, Work
from anyorder.evaluation.svg import Svg

_WIDTH, _MARGIN, _COLUMNS = 980.0, 28.0, 2
_ROW, _HEAD, _LABEL = 19.0, 34.0, 176.0


def picture(results: Results) -> str:
    """A panel for every work with figures; there is at least one side."""
    svg = Svg(width=_WIDTH, title=f"anyorder bench: {results.model}")
    svg.text(_MARGIN, 38, "anyorder bench", size=17, style="ink bold")
    svg.text(
        _WIDTH - _MARGIN,
        38,
        f"{results.model}, {results.threads} threads, medians of {results.figures.num_rounds}",
        size=12,
        style="quiet",
        anchor="end",
    )
    works = [work for work in WORKS if work.name in results.figures.values]
    width = (_WIDTH - _MARGIN * (_COLUMNS + 1)) / _COLUMNS
    ends = [66.0] * _COLUMNS
    for work in works:
        column = ends.index(min(ends))
        left = _MARGIN + column * (width + _MARGIN)
        ends[column] = _panel(svg, left, ends[column], width, results, work) + 22
    return svg.document(max(ends) + 4)


def _panel(svg: Svg, left: float, top: float, width: float, results: Results, work: Work) -> float:
    """One work; returns where it ends."""
    better = "more" if work.higher_is_better else "less"
    svg.text(left, top + 8, work.name, size=13, style="ink bold")
    svg.text(
        left + width,
        top + 8,
        f"{work.unit}, {better} is better",
        size=11,
        style="quiet",
        anchor="end",
    )
    values = results.figures.values[work.name]
    sides = [side for side in results.sides() if side.name in values]
    # Floating limits may lie beyond every bar; the scale holds what was measured.
    most = max(max(values[side.name]) for side in sides)
    room = width - _LABEL - 56
    y = top + _HEAD
    for side in sides:
        figures = values[side.name]
        middle = statistics.median(figures)
        svg.open_group(tooltip=_tooltip(results, side, work))
        svg.text(left + _LABEL - 8, y, side.name, size=11, style="quiet", anchor="end")
        style = "past" if is_peer(side) else "now"
        svg.rect(left + _LABEL, y - 10, max(room * middle / most, 1), 13, style=style, radius=2)
        ends = [
            (left + _LABEL + room * value / most, y - 3.5) for value in (min(figures), max(figures))
        ]
        svg.line(ends, style="axis")
        shown = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
        svg.text(max(ends[1][0], ends[0][0]) + 6, y, shown, size=11)
        svg.close_group()
        y += _ROW
    return y


def _tooltip(results: Results, side: Side, work: Work) -> str:
    figures = results.figures.values[work.name][side.name]
    text = (
        f"{work.title}: {side.name}, {', '.join(f'{value:.4g}' for value in figures)} {work.unit}"
    )
    check = results.checks.get(side.name)
    return text if check is None else f"{text}; {check.shown()}"
