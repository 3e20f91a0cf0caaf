"""A small SVG writer: shapes, escaped text, one palette for light and dark pages.

Colours are classes, so that `prefers-color-scheme` can change them where the picture is shown.
Text is set in a monospaced font and told its width, so that boxes fit whatever font the viewer has.
Nothing is drawn that was not escaped.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence as Seq
from xml.sax.saxutils import escape, quoteattr

CELL = 0.6
"""Width of a monospaced character, in font sizes."""

_LIGHT = """
.page{fill:#ffffff;stroke:#d8dee4}.ink{fill:#1f2328}.quiet{fill:#656d76}.faint{fill:#afb8c1}
.grid{stroke:#e4e8ec}.axis{stroke:#afb8c1}.blank{fill:#eef1f4}.past{fill:#c3dafc}
.now{fill:#2f6fed}.good{fill:#1a7f37}.bad{fill:#cf222e}.warm{fill:#e8590c}.cool{fill:#7c4dcc}
"""
_DARK = """
.page{fill:#0d1117;stroke:#30363d}.ink{fill:#e6edf3}.quiet{fill:#9198a1}.faint{fill:#57606a}
.grid{stroke:#21262d}.axis{stroke:#484f58}.blank{fill:#161b22}.past{fill:#1d3b66}
.now{fill:#5b93ff}.good{fill:#3fb950}.bad{fill:#ff6b6b}.warm{fill:#ff9f5a}.cool{fill:#b794f6}
"""
_FONTS = (
    "text{font-family:ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',monospace;"
    "white-space:pre}"
    ".bold{font-weight:700}.page,.grid,.axis{stroke-width:1;shape-rendering:geometricPrecision}"
    ".grid,.axis,.limit{fill:none}.limit{stroke:#e5534b;stroke-dasharray:4 3}"
)

_STOPS = ((0.0, (232, 72, 60)), (0.5, (176, 96, 208)), (1.0, (47, 125, 246)))
"""Probability to colour: red over violet to blue, distinct for colour-blind readers too."""


def clean(text: str) -> str:
    """`text` with whatever XML forbids or nobody can see replaced by U+FFFD."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def cells(text: str) -> int:
    """Columns that a text takes in a monospaced font; wide characters take two."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shorten(text: str, columns: int) -> str:
    """At most so many columns of a text, its end marked if it was cut."""
    if cells(text) <= columns:
        return text
    while cells(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def probability_color(probability: float) -> str:
    """`#rrggbb` on the probability scale, 0 to 1."""
    place = min(max(probability, 0.0), 1.0)
    (low, first), (high, second) = _STOPS[:2] if place < 0.5 else _STOPS[1:]
    share = (place - low) / (high - low)
    mixed = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


class Svg:
    """Collects shapes; coordinates are pixels from the top left corner."""

    def __init__(self, *, width: float, title: str) -> None:
        self._width = width
        self._title = title
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        style: str = "ink",
        anchor: str = "start",
        fitted: bool = False,
    ) -> float:
        """Write one line with its baseline at `y`; returns its width. `fitted`: exactly so wide,
        in any font. `style` is one or more of the palette's classes."""
        shown = clean(text).replace(" ", "\u00a0")
        width = cells(shown) * CELL * size
        fit = f' textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"' if fitted else ""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" class="{style}"{place}{fit}>'
            f"{escape(shown)}</text>"
        )
        return width

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        style: str = "",
        fill: str = "",
        opacity: float = 1.0,
        radius: float = 0.0,
    ) -> None:
        """A rectangle, coloured by class (`style`) or by a fixed `fill`."""
        paint = f' class="{style}"' if style else ""
        paint += f' fill="{fill}"' if fill else ""
        paint += f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        paint += f' rx="{radius:g}"' if radius else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{paint}/>'
        )

    def circle(self, x: float, y: float, radius: float, *, style: str = "", fill: str = "") -> None:
        """A dot."""
        paint = f' class="{style}"' if style else f' fill="{fill}"'
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"{paint}/>')

    def line(
        self, points: Seq[tuple[float, float]], *, style: str = "axis", stroke: str = ""
    ) -> None:
        """A thin line through points, coloured by class or by a fixed `stroke`."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        paint = f'class="{style}"'
        if stroke:
            paint = f'fill="none" stroke="{stroke}" stroke-width="1.5"'
        self._parts.append(f'<polyline points="{path}" {paint}/>')

    def open_group(self, *, tooltip: str, step: int | None = None) -> None:
        """Shapes up to `close_group` show `tooltip` when pointed at; `step` is for scripts."""
        mark = "" if step is None else f' data-step="{step}"'
        self._parts.append(f"<g{mark}><title>{escape(clean(tooltip))}</title>")

    def close_group(self) -> None:
        """End of what `open_group` began."""
        self._parts.append("</g>")

    def document(self, height: float) -> str:
        """The whole picture as an SVG file."""
        style = f"{_FONTS}{_LIGHT}@media (prefers-color-scheme:dark){{{_DARK}}}".replace("\n", "")
        page = (
            f'<rect x="0.5" y="0.5" width="{self._width - 1:g}" height="{height - 1:g}" rx="10" '
            'class="page"/>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width:g}" height="{height:g}" '
            f'viewBox="0 0 {self._width:g} {height:g}" role="img" '
            f"aria-label={quoteattr(clean(self._title))}>"
            f"<style>{style}</style>{page}\n" + "\n".join(self._parts) + "\n</svg>\n"
        )
