"""CTC's texts against all sequences of places written out, and against torch's ctc_loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from anyorder.sampling.alignments import best_text, merge

BLANK, VOCABULARY, PLACES = 0, 3, 5


def table(seed: int) -> torch.Tensor:
    """Log-probabilities [places, vocabulary]."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(PLACES, VOCABULARY, generator=rng, dtype=torch.float64)
    return scores.log_softmax(1)


def ranked(logprobs: torch.Tensor) -> list[list[tuple[int, float]]]:
    return [list(enumerate(row)) for row in logprobs.tolist()]


def naive(tokens: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(tokens) if token != BLANK)


def texts(logprobs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Probability of every text."""
    found: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=PLACES):
        chance = math.exp(sum(float(logprobs[i, token]) for i, token in enumerate(tokens)))
        found[naive(tokens)] = found.get(naive(tokens), 0.0) + chance
    return found


def test_every_sequence_is_merged() -> None:
    for tokens in itertools.product(range(VOCABULARY), repeat=PLACES):
        runs = merge(tokens, BLANK)
        assert tuple(tokens[run[0]] for run in runs) == naive(tokens)
        assert all(tokens[place] == tokens[run[0]] for run in runs for place in run)
        said = [place for run in runs for place in run]
        assert said == [place for place, token in enumerate(tokens) if token != BLANK]


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_search_finds_the_likeliest_text(seed: int) -> None:
    logprobs = table(seed)
    everything = texts(logprobs)
    score, tokens, peaks = best_text(ranked(logprobs), BLANK, width=1000)
    best = max(everything, key=everything.__getitem__)
    assert tuple(tokens) == best
    assert score == pytest.approx(math.log(everything[best]))
    assert len(peaks) == len(tokens)
    assert all(
        peak in logprobs[:, token].tolist() for token, peak in zip(tokens, peaks, strict=True)
    )


@pytest.mark.parametrize("seed", range(8))
def test_its_score_is_torchs_sum_over_alignments(seed: int) -> None:
    logprobs = table(seed)
    score, tokens, _ = best_text(ranked(logprobs), BLANK, width=1000)
    cost = F.ctc_loss(
        logprobs[:, None],
        torch.tensor([tokens]),
        torch.tensor([PLACES]),
        torch.tensor([len(tokens)]),
        reduction="sum",
    )
    assert score == pytest.approx(-float(cost))


def test_a_search_sums_what_a_best_sequence_does_not() -> None:
    other = sum(
        best_text(ranked(table(seed)), BLANK, width=1000)[1]
        != list(naive(tuple(table(seed).argmax(1).tolist())))
        for seed in range(20)
    )
    assert other


def test_a_narrow_search_never_beats_a_wide_one() -> None:
    lower = 0
    for seed in range(20):
        scores = [best_text(ranked(table(seed)), BLANK, width=width)[0] for width in (1, 4, 1000)]
        assert scores == sorted(scores)
        lower += scores[0] < scores[2]
    assert lower


def test_nothing_but_blanks_is_the_empty_text() -> None:
    assert merge([BLANK] * 4, BLANK) == []
    assert best_text([[(BLANK, 0.0)]] * 4, BLANK, width=3) == (0.0, [], [])
