"""What is told of the processed distribution equals its definition in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyorder.core.forward import Outputs
from anyorder.core.request import Request
from anyorder.sampling.sampler import Row, RowResult, sample

VOCABULARY = 40
ALL = Outputs(entropy=True, margin=True, processed=True)


def answers(logits: torch.Tensor, processed: torch.Tensor | None, **fields: Any) -> list[RowResult]:
    rows = [
        Row(
            request=Request(prompt=[1], **fields),
            outputs=ALL,
            history=[1, 5, 5, 7],
            num_prompt=1,
            draw=(0, 0, number),
        )
        for number in range(len(logits))
    ]
    return sample(logits, rows, processed)


def check(found: list[RowResult], probabilities: torch.Tensor) -> None:
    for result, line in zip(found, probabilities.double(), strict=True):
        assert result.token is not None
        some = line[line > 0]
        assert result.confidence == pytest.approx(float(line[result.token].log()), abs=1e-5)
        assert result.entropy == pytest.approx(float(-(some * some.log()).sum()), abs=1e-5)
        first, second = line.topk(2).values.tolist()
        assert result.margin == pytest.approx(first - second, abs=1e-5)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_is_the_models_own(logits: torch.Tensor, temperature: float) -> None:
    found = answers(logits, None, temperature=temperature)
    check(found, logits.softmax(-1))
    assert all(result.confidence == result.logprob for result in found)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.6])
def test_after_temperature(logits: torch.Tensor, temperature: float) -> None:
    found = answers(logits, None, temperature=temperature)
    check(found, (logits / temperature).softmax(-1))
    own = logits.log_softmax(-1)
    for result, line in zip(found, own, strict=True):
        assert result.logprob == pytest.approx(float(line[result.token]), abs=1e-5)


@pytest.mark.parametrize("fields", [{"top_k": 3}, {"top_k": 3, "top_p": 1.0, "min_p": 1e-9}])
def test_after_truncation(logits: torch.Tensor, fields: dict[str, Any]) -> None:
    kept = logits.masked_fill(logits < logits.topk(3).values[:, -1:], -torch.inf)
    check(answers(logits, None, temperature=1.0, **fields), kept.softmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_after_guidance_and_biases(logits: torch.Tensor, temperature: float) -> None:
    guided = logits.flip(0) * 1.5
    check(answers(logits, guided, temperature=temperature), guided.softmax(-1))
    biased = logits.clone()
    biased[:, 3] += 2.0
    found = answers(logits, None, temperature=temperature, logit_bias={3: 2.0})
    check(found, biased.softmax(-1))
