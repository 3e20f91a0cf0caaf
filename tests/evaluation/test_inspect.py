"""Prefix consistency: passes on causal networks, fails on those that look ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from tests.cli.checkpoint import save_checkpoint

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.errors import InvalidRequest
from anyorder.engine.engine import Engine
from anyorder.evaluation.inspect import Inspection, inspect
from anyorder.evaluation.inspect_picture import inspect_svg
from anyorder.model.loaded import LoadedModel, load

TEXT = "The capital of France is Paris, and the capital of Italy is Rome."
Change = Callable[[torch.Tensor], torch.Tensor]


class Changed:
    """A network whose final hidden states are tampered with."""

    def __init__(self, network: Any, change: Change) -> None:
        self._network = network
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        return self._change(self._network.hidden(batch, pool))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_checkpoint(tmp_path_factory.mktemp("inspect") / "tiny"), device="cpu")


def measure(model: LoadedModel, change: Change | None = None, **others: Any) -> Inspection:
    if change is not None:
        network: Any = Changed(model.network, change)
        model = dataclasses.replace(model, network=network)
    return inspect(
        lambda batch, cache: Engine(model, max_batch_tokens=batch, cache_tokens=cache),
        TEXT,
        **{"tolerance": 1e-4, **others},
    )


def test_a_causal_network_passes(model: LoadedModel) -> None:
    found = measure(model)
    count = len(found.logprobs)
    assert found.passed and found.backward_influence == 0
    expected = Engine(model, cache_tokens=1024).score(TEXT).logprobs
    assert found.logprobs == pytest.approx(expected, abs=1e-5)
    assert len(found.tokens) == len(found.texts) == count + 1
    chunks, single, prefixes = found.comparisons
    assert (chunks.num_passes, single.num_passes) == (-(-count // 4), count)
    assert 0 < single.largest < 1e-4 and prefixes.num_passes > 1


def test_every_earlier_token_has_influence(model: LoadedModel) -> None:
    """Rows are predictions: below the diagonal something moved, at and above it nothing."""
    found = measure(model, max_prefixes=1000)
    for row, values in enumerate(found.influence):
        assert all(value > 0 for value in values[: row + 1])
        assert all(value == 0 for value in values[row + 2 :])
        assert values[row + 1] != values[row + 1]  # NaN: the predicted token itself


def test_a_network_that_looks_ahead_fails(model: LoadedModel) -> None:
    found = measure(model, lambda hidden: hidden + 0.1 * hidden.mean(dim=0))
    assert not found.passed and found.backward_influence > 1e-4
    assert all(comparison.largest > 1e-4 for comparison in found.comparisons)


def test_prefixes_are_sampled(model: LoadedModel) -> None:
    found = measure(model, max_prefixes=4)
    assert found.passed and found.comparisons[2].num_passes <= 4
    measured = {place for row in found.influence for place, v in enumerate(row) if v == v}
    assert len(measured) == 4


@pytest.mark.parametrize("text", ["x", "word " * 600])
def test_texts_that_cannot_be_inspected(model: LoadedModel, text: str) -> None:
    with pytest.raises(InvalidRequest, match="takes 2 to 512"):
        inspect(
            lambda batch, cache: Engine(model, max_batch_tokens=batch, cache_tokens=cache),
            text,
            tolerance=1,
        )


def test_picture(model: LoadedModel, tmp_path: Path) -> None:
    for found, verdict in (
        (measure(model), "PASS"),
        (measure(model, lambda hidden: hidden + hidden.mean(dim=0)), "FAIL"),
    ):
        picture = ElementTree.fromstring(inspect_svg(found))
        written = [node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")]
        assert verdict in written and f"{len(found.logprobs)}\xa0passes" in written
