"""CTC's texts against dense passes and all sequences of places written out."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.methods.encoder_decoders import MASK, source
from tests.methods.one_pass import (
    dense_hidden,
    generate,
    one_pass_model,
)
from tests.tiny import tiny_engine

from anyorder.core.errors import InvalidRequest, UnsupportedMethod
from anyorder.core.request import Request

translate = functools.partial(generate, "ctc")


def places(tokens: list[int]) -> torch.Tensor:
    """Log-probabilities [places, vocabulary], without an engine."""
    network: Any = one_pass_model(linked=False).network
    found: torch.Tensor = network.logits(dense_hidden(network, tokens))[1:].log_softmax(-1)
    return found


def collapsed(tokens: list[int]) -> list[int]:
    return [token for token, _ in itertools.groupby(tokens) if token != MASK]


def test_the_best_sequence_is_merged() -> None:
    merged = blanks = 0
    for seed in range(12):
        table = places(source(seed))
        values, ids = table.max(dim=-1)
        found = translate(source(seed))
        assert found.tokens == collapsed(ids.tolist())
        runs = [list(run) for _, run in itertools.groupby(range(len(ids)), ids.__getitem__)]
        peaks = [float(values[run].max()) for run in runs if ids[run[0]] != MASK]
        assert found.logprobs == pytest.approx(peaks, abs=1e-5)
        assert found.report.passes_by_role == {"encoder": 1, "target": 1}
        assert found.finish_reason == "stop"
        blanks += int((ids == MASK).sum())
        merged += len(ids) - int((ids == MASK).sum()) - len(found.tokens)
    assert merged and blanks


def sum_over_sequences(table: torch.Tensor, text: list[int]) -> float:
    """torch's own log-probability of a text."""
    cost = F.ctc_loss(
        table[:, None],
        torch.tensor([text]),
        torch.tensor([len(table)]),
        torch.tensor([len(text)]),
        blank=MASK,
        reduction="sum",
    )
    return -float(cost)


def test_a_search_finds_likelier_texts_and_knows_how_likely() -> None:
    better = 0
    for seed in range(6):
        table = places(source(seed, 3))
        found = translate(source(seed, 3), options={"width": 64})
        exact = sum_over_sequences(table, found.tokens)
        assert found.choices[0].score is not None and found.choices[0].score <= exact + 1e-6
        assert found.choices[0].score == pytest.approx(exact, abs=0.5)
        plain = sum_over_sequences(table, translate(source(seed, 3)).tokens)
        assert exact >= plain - 1e-6
        better += exact > plain + 1e-6
        assert len(found.logprobs) == len(found.tokens)
    assert better


def test_drawn_texts_have_their_probabilities() -> None:
    tokens, size, heat = source(0, 1), 400, 0.3
    table = (places(tokens) / heat).log_softmax(-1)
    engine = tiny_engine(model=one_pass_model(linked=False))
    requests = [
        Request(prompt=tokens, method="ctc", temperature=heat, seed=seed) for seed in range(size)
    ]
    counts = Counter(tuple(completion.tokens) for completion in engine.generate(requests))
    for text, count in counts.most_common(3):
        share = math.exp(sum_over_sequences(table, list(text)))
        assert size * share > 5
        assert abs(count - size * share) < 4 * math.sqrt(size * share * (1 - share))


def test_a_bias_holds_for_the_blank_too() -> None:
    kept = dict.fromkeys((MASK, 7), 1e9)
    assert set(translate(source(0), logit_bias=kept).tokens) <= {7}
    for width in (1, 4):
        only_blanks = translate(source(0), logit_bias={MASK: 1e9}, options={"width": width})
        assert only_blanks.tokens == [] and only_blanks.finish_reason == "stop"


def test_a_search_refuses_what_it_cannot_do() -> None:
    for fields in ({"temperature": 1.0}, {"logprobs": 1}):
        with pytest.raises(InvalidRequest, match=next(iter(fields))):
            translate(source(0), options={"width": 2}, **fields)


def test_other_networks_and_methods_are_refused() -> None:
    engine = tiny_engine(model=one_pass_model(linked=False))
    assert engine.usable_methods == ["ctc"]
    with pytest.raises(UnsupportedMethod, match=r"ctc needs a decoder of single vertices.*linked"):
        tiny_engine(model=one_pass_model(linked=True)).generate(source(0), method="ctc")
