"""MAUVE against its closed form for disjoint histograms, and on points whose clusters are known."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from tests.tiny import tiny_engine

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.evaluation.mauve import area, mauve, vectors


def test_the_area_in_closed_form() -> None:
    counts = np.array([3, 5, 2])
    assert area(counts, counts) == pytest.approx(1)
    # Disjoint: R = tP + (1 - t)Q gives the curve ((1 - t)^5, t^5), under which lies 1 / C(10, 5).
    far = 10**9
    found = area(np.array([far, 0]), np.array([0, far]))
    assert found == pytest.approx(1 / comb(10, 5), abs=1e-3)
    half = area(np.array([far, far]), np.array([far, 0]))
    assert found < half < 1


def test_it_is_symmetric_and_falls_with_distance() -> None:
    histograms = [np.array([50, 50]), np.array([60, 40]), np.array([80, 20]), np.array([99, 1])]
    found = [area(histograms[0], other) for other in histograms]
    assert found == sorted(found, reverse=True) and found[0] == pytest.approx(1)
    back = [area(other, histograms[0]) for other in histograms]
    assert back == pytest.approx(found, rel=1e-6)


def test_sets_of_points() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(12)

    def points(kinds: list[int], seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, 0.02, (len(kinds), 12))
        return centres[kinds] + noise

    first = points(rng.integers(0, 4, 80).tolist(), 1)
    alike = points(rng.integers(0, 4, 80).tolist(), 2)
    narrower = points([0, 1] * 40, 3)
    strangers = points(rng.integers(6, 10, 80).tolist(), 4)
    values = [mauve(first, other) for other in (first, alike, narrower, strangers)]
    assert values[0] == pytest.approx(1) and values[1] > 0.8
    assert values[1] > values[2] + 0.1 > values[3] + 0.1 and values[3] < 0.1
    assert mauve(first, narrower, seed=3) == mauve(first, narrower, seed=3)
    with pytest.raises(UserError, match="at least 20 texts on each side, got 19"):
        mauve(first, first[:19])
    same = np.ones((40, 3))
    assert mauve(same, same) == pytest.approx(1)  # nothing to tell apart


def test_vectors_are_means_after_half_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) - ord("a") for letter in text]

    engine = tiny_engine()
    monkeypatch.setattr(engine, "tokenizer", Letters())
    found = vectors(engine, ["abc", "", "abcd"])
    network = engine.roles["target"].network
    batch = dense_batch(torch.tensor([[0, 1, 2]]))
    object.__setattr__(batch, "num_layers", 1)
    with torch.no_grad():
        mean = network.hidden(batch, None).mean(0)
    np.testing.assert_allclose(found[0], (mean / mean.norm()).numpy(), rtol=1e-9)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1) and not np.allclose(found[0], found[2])
