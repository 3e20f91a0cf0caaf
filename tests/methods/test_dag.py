"""Paths through a graph of vertices against dense passes and all paths written out."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from tests.methods.encoder_decoders import MASK, source
from tests.methods.one_pass import (
    dense_hidden,
    generate,
    one_pass_model,
)
from tests.tiny import tiny_engine

from anyorder.core.errors import InvalidRequest, UnsupportedMethod
from anyorder.core.request import Completion, Request

translate = functools.partial(generate, "dag")


def graph(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Links [vertices, vertices] and log-probabilities [vertices, vocabulary]."""
    network: Any = one_pass_model(linked=True).network
    hidden = dense_hidden(network, tokens)
    logits = network.logits(hidden)
    logits[:, MASK] = -torch.inf
    return network.links(hidden[None], torch.tensor([len(hidden)]))[0], logits.log_softmax(-1)


def all_paths(scores: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Every path's sum."""
    last = len(scores) - 1
    return {
        (*middle, last): sum(float(scores[a, b]) for a, b in itertools.pairwise((0, *middle, last)))
        for count in range(last)
        for middle in itertools.combinations(range(1, last), count)
    }


def assert_spells(completion: Completion, path: tuple[int, ...], emissions: torch.Tensor) -> None:
    values, ids = emissions[list(path)].max(dim=-1)
    assert completion.tokens == ids.tolist()
    assert completion.logprobs == pytest.approx(values.tolist(), abs=1e-5)
    assert completion.report.passes_by_role == {"encoder": 1, "target": 1}
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("looks", [False, True])
def test_step_by_step_is_the_papers_loop(looks: bool) -> None:
    for seed in range(6):
        links, emissions = graph(source(seed))
        vertex, path = 0, list[int]()
        while vertex < len(links) - 1:
            steps = links[vertex] + (emissions.amax(-1) if looks else 0.0)
            vertex = int(steps.argmax())
            path.append(vertex)
        found = translate(source(seed), options={"joint": looks})
        assert_spells(found, tuple(path), emissions)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("joint", [False, True])
def test_viterbi_is_the_best_of_all_paths(joint: bool, penalty: float) -> None:
    options = {"path": "viterbi", "joint": joint, "length_penalty": penalty}
    for seed in range(4):
        tokens = source(seed, 4)
        links, emissions = graph(tokens)
        scores = all_paths(links + emissions.amax(-1) if joint else links)
        best = max(scores, key=lambda path: scores[path] / len(path) ** penalty)
        found = translate(tokens, options=options)
        assert_spells(found, best, emissions)


def test_the_ways_to_find_a_path_differ() -> None:
    ways = [
        {"path": path, "joint": joint} for path in ("steps", "viterbi") for joint in (False, True)
    ]
    texts = {
        tuple(tuple(translate(source(seed), options=way).tokens) for seed in range(6))
        for way in ways
    }
    assert len(texts) == 4


def test_at_temperature_1_texts_have_their_probabilities() -> None:
    """A graph of a source of one token: 6 vertices, 16 paths."""
    tokens, size = source(0, 1), 400
    links, emissions = graph(tokens)
    engine = tiny_engine(model=one_pass_model(linked=True))
    requests = [
        Request(prompt=tokens, method="dag", temperature=1.0, seed=seed) for seed in range(size)
    ]
    completions = engine.generate(requests)
    lengths = Counter(len(completion.tokens) for completion in completions)
    expected = Counter[int]()
    for path, score in all_paths(links).items():
        expected[len(path)] += size * math.exp(score)
    statistic = sum((lengths[n] - expected[n]) ** 2 / expected[n] for n in expected)
    assert statistic < 18.5  # 4 degrees of freedom, p = 0.001
    # The last vertex is on every path.
    last = emissions[-1].exp()
    counts = Counter(completion.tokens[-1] for completion in completions)
    token = int(last.argmax())
    share = float(last[token])
    assert abs(counts[token] - size * share) < 4 * math.sqrt(size * share * (1 - share))


def test_a_search_refuses_draws() -> None:
    with pytest.raises(InvalidRequest, match="draws nothing: leave temperature at 0"):
        translate(source(0), temperature=1.0, options={"path": "viterbi"})


def test_a_bias_and_guidance_change_tokens_and_not_the_path() -> None:
    free = translate(source(2))
    biased = translate(source(2), logit_bias=dict.fromkeys(free.tokens, -1e9))
    assert not set(free.tokens) & set(biased.tokens)
    options = {"joint": False}
    plain = translate(source(2), options=options)
    guided = translate(source(2), guidance_scale=3.0, negative_prompt=source(5), options=options)
    assert len(guided.tokens) == len(plain.tokens) and guided.tokens != plain.tokens


def test_other_networks_and_methods_are_refused() -> None:
    engine = tiny_engine(model=one_pass_model(linked=True))
    assert engine.usable_methods == ["dag"]
    wanted = "mask_predict needs a text decoder; that of tiny is one of linked vertices.* dag"
    with pytest.raises(UnsupportedMethod, match=wanted):
        engine.generate(source(0), method="mask_predict")
    with pytest.raises(UnsupportedMethod, match=r"dag needs a decoder of linked vertices.*single"):
        tiny_engine(model=one_pass_model(linked=False)).generate(source(0), method="dag")
    with pytest.raises(UnsupportedMethod, match="dag needs a mask token"):
        tiny_engine().generate([1], method="dag")
