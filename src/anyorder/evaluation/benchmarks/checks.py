"""Are a side's tokens those of the model, and what does its rounding cost?

Rounding decides near-ties, and after the first text that took another way no token compares. So the
reference, anyorder in float32, follows the side: where the two part, it says how much likelier it
finds its own token, and goes on from the side's. The largest of these gaps is what the side's
arithmetic amounts to; a wrong kernel makes gaps of several nats. Next to it stands the perplexity
on real text, by the side's own probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from anyorder.evaluation.benchmarks.process import Asked
from anyorder.evaluation.benchmarks.sides import TOLERANCES, Side

Explain = Callable[[list[int], int], Seq[dict[str, Any]]]
"""The reference's greedy tokens after a prompt, with the likeliest tokens at each place."""

NUM_NEW = 32


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far a side is from the reference."""

    first_difference: int | None
    """Index of the first new token, over all texts, that is not the reference's."""
    largest_gap: float
    """Nats by which the reference prefers its own token there, at most."""
    gap_at: int
    """Index of the new token with the largest gap."""
    perplexity: float
    tolerance: float

    @property
    def differs(self) -> bool:
        """Do its tokens differ beyond near-ties?"""
        return self.largest_gap > self.tolerance

    def shown(self) -> str:
        """In a few words."""
        if self.differs:
            return f"differs at token {self.gap_at} by {self.largest_gap:.2g} nats"
        if self.first_difference is None:
            return "the same tokens"
        return f"near-ties from token {self.first_difference}, {self.largest_gap:.2g} nats at most"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What sides are checked on, as token ids."""

    prompts: Seq[list[int]]
    windows: Seq[list[int]]


def remembered(reference: Asked) -> Explain:
    """The reference's worker, which is not asked twice: most sides make the same tokens."""
    known: dict[tuple[int, ...], Seq[dict[str, Any]]] = {}

    def explain(prompt: list[int], num_new: int) -> Seq[dict[str, Any]]:
        key = (num_new, *prompt)
        if key not in known:
            call = {"do": "explain", "prompt": prompt, "num_new": num_new}
            known[key] = reference.ask(call)["found"]
        return known[key]

    return explain


def check(side: Side, worker: Asked, explain: Explain, texts: Texts) -> Check:
    """Compare one side."""
    gaps: list[tuple[int, float]] = []
    for prompt in texts.prompts:
        tokens = worker.generate([prompt], NUM_NEW).tokens[0]
        assert len(tokens) == NUM_NEW, f"{side.name} made {len(tokens)} tokens, not {NUM_NEW}"
        gaps += partings(explain, prompt, tokens)
    nats = worker.ask({"do": "likelihood", "windows": texts.windows})["nats"]
    count = sum(len(window) - 1 for window in texts.windows)
    at, largest = max(gaps, key=lambda item: item[1], default=(0, 0.0))
    return Check(
        first_difference=min((index for index, _ in gaps), default=None),
        largest_gap=largest,
        gap_at=at,
        perplexity=math.exp(nats / count),
        tolerance=TOLERANCES[side.format],
    )


def partings(explain: Explain, prompt: list[int], tokens: list[int]) -> list[tuple[int, float]]:
    """Where the reference, led along `tokens`, would have taken another: (index, gap in nats)."""
    found: list[tuple[int, float]] = []
    start = 0
    while start < len(tokens):
        steps = explain(prompt + tokens[:start], len(tokens) - start)
        pairs = enumerate(zip(steps, tokens[start:], strict=True), start)
        parting = next(((i, s) for i, (s, token) in pairs if s["token"] != token), None)
        if parting is None:
            break
        index, step = parting
        chances = dict(map(tuple, step["others"]))
        best = max(chances.values())
        # A token that is not even among the likeliest is at least as far away as the last of them.
        theirs = chances.get(tokens[index], min(chances.values()))
        found.append((index, math.log(best / max(theirs, 1e-30))))
        start = index + 1
    return found
