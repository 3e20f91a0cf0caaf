"""Prefix consistency: does extending a text leave every earlier prediction alone?

The chain rule needs one-way dependency: log p(token i | tokens before i) must not depend on what
follows. A causal mask promises it; this measures it on a model as loaded. One text is scored

- in parallel: all tokens in one pass,
- in chunks and token by token: in passes of a few tokens over the cache, as decoding does,
- prefix by prefix: every prefix as a text of its own, nothing shared,

and with every token in turn replaced by another, to see whose predictions move. All the scores must
agree where the past is the same. Only log-probabilities of the text's own tokens are compared, not
whole distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine

CHUNK = 4
"""Tokens a pass of the chunked run."""
MAX_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One other way to compute the same log-probabilities."""

    name: str
    num_passes: int
    differences: tuple[float, ...]
    """Absolute difference to the parallel run, one per token after the first."""

    @property
    def largest(self) -> float:
        """The largest difference, nats."""
        return max(self.differences)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found."""

    model: str
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    """Printable forms of the tokens."""
    logprobs: tuple[float, ...]
    """The parallel run's; one per token after the first."""
    comparisons: tuple[Comparison, ...]
    influence: tuple[tuple[float, ...], ...]
    """[predicted - 1][replaced]: by how much token `predicted`'s log-probability moved when token
    `replaced` became another one; NaN where it is that token itself, or was not measured."""
    tolerance: float

    @property
    def backward_influence(self) -> float:
        """The largest influence of a token on a prediction before it; must be 0."""
        return max(
            (
                value
                for row, values in enumerate(self.influence)
                for replaced, value in enumerate(values)
                if replaced > row + 1 and not math.isnan(value)
            ),
            default=0.0,
        )

    @property
    def passed(self) -> bool:
        """Is every difference within the tolerance?"""
        found = [comparison.largest for comparison in self.comparisons]
        return max([*found, self.backward_influence]) <= self.tolerance


OpenEngine = Callable[[int, int], Engine]
"""An engine for the model in question, given `max_batch_tokens` and `cache_tokens`."""


def inspect(
    open_engine: OpenEngine, text: str, *, tolerance: float, max_prefixes: int = 32
) -> Inspection:
    """Measure a text of at most MAX_TOKENS tokens.

    `max_prefixes` bounds how many prefixes are run alone, and how many tokens are replaced; they
    are spread evenly. `tolerance` is in nats.
    """
    engine = open_engine(MAX_TOKENS, 2 * MAX_TOKENS)
    assert engine.tokenizer is not None, "inspecting takes a text, so a tokenizer"
    tokens = engine.tokenizer.encode(text)
    if not 2 <= len(tokens) <= MAX_TOKENS:
        raise InvalidRequest(
            f"the text has {len(tokens)} tokens; inspecting takes 2 to {MAX_TOKENS}."
        )
    parallel = _score(engine, tokens)
    comparisons = [
        _compare(name, _score(open_engine(size, len(tokens) + 1), tokens), parallel)
        for name, size in ((f"chunks of {CHUNK}", CHUNK), ("token by token", 1))
    ]
    chosen = _spread(len(tokens), max_prefixes)
    comparisons.append(_prefixes(engine, tokens, [end for end in chosen if end > 1], parallel))
    return Inspection(
        model=engine.abilities.name,
        tokens=tuple(tokens),
        texts=tuple(engine.tokenizer.token_text(token) for token in tokens),
        logprobs=tuple(_logprobs(parallel)),
        comparisons=tuple(comparisons),
        influence=_influence(engine, tokens, [end - 1 for end in chosen], parallel),
        tolerance=tolerance,
    )


def _spread(length: int, count: int) -> list[int]:
    """At most `count` of 1..length, evenly spread, the last among them."""
    count = min(length, count)
    return [-(-length * (index + 1) // count) for index in range(count)]


def _score(engine: Engine, tokens: list[int]) -> Completion:
    request = Request(prompt=tokens, max_new_tokens=0, prompt_logprobs=True, prefix_cache=False)
    return engine.generate([request])[0]


def _logprobs(completion: Completion) -> list[float]:
    assert completion.prompt_logprobs is not None, "prompt_logprobs was asked for"
    return completion.prompt_logprobs


def _compare(name: str, other: Completion, parallel: Completion) -> Comparison:
    pairs = zip(_logprobs(other), _logprobs(parallel), strict=True)
    return Comparison(
        name=name,
        num_passes=other.report.num_forward_passes,
        differences=tuple(abs(a - b) for a, b in pairs),
    )


def _prefixes(
    engine: Engine, tokens: list[int], ends: list[int], parallel: Completion
) -> Comparison:
    """Every chosen prefix by itself: the largest difference at each token over all of them."""
    whole = _logprobs(parallel)
    largest = [0.0] * len(whole)
    num_passes = 0
    for end in ends:
        prefix = _score(engine, tokens[:end])
        num_passes += prefix.report.num_forward_passes
        for place, value in enumerate(_logprobs(prefix)):
            largest[place] = max(largest[place], abs(value - whole[place]))
    return Comparison(name="each prefix alone", num_passes=num_passes, differences=tuple(largest))


def _influence(
    engine: Engine, tokens: list[int], replaced: list[int], parallel: Completion
) -> tuple[tuple[float, ...], ...]:
    """See `Inspection.influence`; columns that are not in `replaced` stay NaN."""
    whole = _logprobs(parallel)
    influence = [[math.nan] * len(tokens) for _ in whole]
    size = engine.abilities.vocabulary_size
    for place in replaced:
        other = tokens[(place + 1) % len(tokens)]
        if other == tokens[place]:
            other = (other + 1) % size
        changed = [*tokens[:place], other, *tokens[place + 1 :]]
        moved = _score(engine, changed)
        for row, value in enumerate(_logprobs(moved)):
            if row + 1 != place:
                influence[row][place] = abs(value - whole[row])
    return tuple(map(tuple, influence))
