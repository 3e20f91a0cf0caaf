"""Texts from places that each say a token or a blank: connectionist temporal classification.

Graves et al., ICML 2006: repeats are merged and blanks dropped, so that many sequences of places
are one text. `merge` does that to one sequence; `best_text` searches for the text whose sequences
have the highest summed probability, by a beam over prefixes (Hannun et al., arXiv 1408.2873,
without a language model). With as many prefixes as there are it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

Ranked = Seq[tuple[int, float]]
"""Tokens of a place with their log-probabilities."""


def merge(tokens: Seq[int], blank: int) -> list[list[int]]:
    """For each token of the text, the places that say it: runs of equal tokens, without blanks."""
    runs: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token == blank:
            continue
        if place and tokens[place - 1] == token:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


@dataclass(kw_only=True, slots=True)
class _Sums:
    """Log-probability of the sequences so far that are one text, by what they end with."""

    blank: float = -math.inf
    token: float = -math.inf

    @property
    def total(self) -> float:
        return _add(self.blank, self.token)


def best_text(
    places: Seq[Ranked], blank: int, *, width: int
) -> tuple[float, list[int], list[float]]:
    """The likeliest text found with `width` prefixes kept at every place: its log-probability, its
    tokens, and of each token its highest log-probability at a place where the text grew by it.

    What a place does not list is impossible there.
    """
    peaks: dict[tuple[int, ...], float] = {}
    beam: dict[tuple[int, ...], _Sums] = {(): _Sums(blank=0.0)}
    for ranked in places:
        grown: dict[tuple[int, ...], _Sums] = {}
        for text, sums in beam.items():
            for token, logprob in ranked:
                if token == blank:
                    stays = grown.setdefault(text, _Sums())
                    stays.blank = _add(stays.blank, sums.total + logprob)
                    continue
                before = sums.total
                if text and text[-1] == token:
                    # Said again without a blank between it is the same one.
                    stays = grown.setdefault(text, _Sums())
                    stays.token = _add(stays.token, sums.token + logprob)
                    before = sums.blank
                if before == -math.inf:
                    continue
                longer = (*text, token)
                grows = grown.setdefault(longer, _Sums())
                grows.token = _add(grows.token, before + logprob)
                peaks[longer] = max(peaks.get(longer, -math.inf), logprob)
        ranking = sorted(grown.items(), key=lambda item: item[1].total, reverse=True)
        beam = dict(ranking[:width])
    text, sums = max(beam.items(), key=lambda item: item[1].total)
    return sums.total, list(text), [peaks[text[: end + 1]] for end in range(len(text))]


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))"""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
