"""What anyorder sets out to reach, by kind of work; the report says which of it is met.

A ratio is to the best peer of the same run. Where `format` is empty, each engine's best format
counts. The figures are those of docs/performance.md and are for the default model on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One line of the summary."""

    work: str
    title: str
    format: str = ""
    ratio: float | None = None
    """To the best peer; for work of which less is better, at most this."""
    figure: float | None = None
    """Of anyorder itself, in the work's unit."""
    share: float | None = None
    """Of what the machine could do at most."""
    peers: tuple[str, ...] = ()
    """Engines that are compared; empty: all."""


GOALS = (
    Goal(work="decode", title="single-stream decode, 4-bit", format="4-bit", ratio=1.0),
    Goal(work="decode", title="single-stream decode, 8-bit", format="8-bit", ratio=1.0),
    Goal(work="decode", title="single-stream decode, 16-bit", format="16-bit", ratio=1.2),
    Goal(work="large", title="single-stream decode, 1B, 4-bit", format="4-bit", share=0.85),
    Goal(work="copy", title="exact speculation, text that copies from its prompt", ratio=1.5),
    Goal(work="prefill", title="prefill 1,024", ratio=1.0),
    Goal(work="batch", title="16 streams, 128 + 128", ratio=1.5),
    Goal(
        work="start",
        title="process start to first token",
        ratio=1 / 3,
        figure=1.2,
        peers=("transformers",),
    ),
    Goal(work="memory", title="peak memory, 4-bit, one stream", format="4-bit", figure=450),
)

MIXED_GOAL = 1.5
"""Of all methods in one batch, over the same requests method by method."""
