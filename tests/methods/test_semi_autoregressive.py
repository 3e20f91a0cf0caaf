"""Semi-autoregressive decoding against plain dense passes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from tests.tiny import assert_no_page_is_lost, tiny_config, tiny_engine, tiny_model

from anyorder.core.batch import dense_batch
from anyorder.core.request import Completion, Request
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

MASK = 60
PROMPT = [5, 6, 7]


@functools.cache
def model(**abilities: Any) -> LoadedModel:
    config = tiny_config(tied_embeddings=False)
    network = Transformer.random(config, seed=0, dtype=torch.float64, spread=0.4)
    kinds = frozenset({"bidirectional"})
    own = dataclasses.replace(
        tiny_model(ends=False).abilities, mask_token=MASK, attention=kinds, **abilities
    )
    return LoadedModel(network=network, abilities=own)


def generate(abilities: dict[str, Any] | None = None, **fields: Any) -> Completion:
    engine = tiny_engine(model=model(**(abilities or {})))
    defaults = {"prompt": PROMPT, "method": "semi_autoregressive", "max_new_tokens": 11}
    completion = engine.generate(Request(**{**defaults, **fields}))
    assert_no_page_is_lost(engine)
    return completion


def told(text: list[int | None], *, shift: int = 0) -> torch.Tensor:
    """Log-probabilities of the places of a text behind the prompt."""
    network: Any = model().network
    tokens = torch.tensor([[*PROMPT, *(MASK if token is None else token for token in text)]])
    length = tokens.shape[1]
    hidden = network.hidden(dense_batch(tokens, torch.ones(1, length, length, dtype=torch.bool)))
    logits = network.logits(hidden)
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)[len(PROMPT) - shift :]  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [1, 2, 3, 20])
@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("shift", [False, True])
def test_it_is_a_loop_over_groups(size: int, ahead: int, shift: bool) -> None:
    completion = generate(
        {"token_shift": shift}, options={"size": size, "ahead": ahead}, logprobs=2
    )
    text: list[int] = []
    logprobs: list[float] = []
    while len(text) < 11:
        count = min(size, 11 - len(text))
        masks: list[int | None] = [None] * min(count + ahead, 11 - len(text))
        values, ids = told([*text, *masks], shift=shift)[len(text) :][:count].max(-1)
        text += ids.tolist()
        logprobs += values.tolist()
    assert completion.tokens == text
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-5)
    assert completion.report.num_forward_passes == -(-11 // size)
    steps = [entry.step for entry in completion.choices[0].trace]
    assert steps == [1 + place // size for place in range(11)]
    assert completion.report.exact == (size == 1)
    assert all(len(entry.alternatives) == 2 for entry in completion.choices[0].trace)


def test_a_canvas_is_filled_around_its_tokens() -> None:
    canvas = [None, 9, None, None, None, 4, None, None]
    completion = generate(canvas=canvas, max_new_tokens=None, options={"size": 3})
    text = list(canvas[:6])
    for places in ([0, 2, 3], [4, 6, 7]):
        text += canvas[len(text) : places[-1] + 1]
        best = told(text).argmax(-1).tolist()
        for place in places:
            text[place] = best[place]
    assert completion.tokens == text


def test_bans_cut_a_group_short() -> None:
    free = generate(options={"size": 11}).tokens
    assert len(set(free)) < 11
    kept = generate(options={"size": 11}, no_repeat_ngram=1)
    repeats = next(i for i in range(11) if free[i] in free[:i])
    assert kept.tokens[:repeats] == free[:repeats]
    assert len(set(kept.tokens)) == 11
    steps = [entry.step for entry in kept.choices[0].trace]
    assert steps[repeats - 1 : repeats + 1] == [1, 2]
    assert all(b - a in (0, 1) for a, b in itertools.pairwise(steps))


def test_it_stops_at_an_end() -> None:
    free = generate(options={"size": 4}).tokens
    stopped = generate(options={"size": 4}, stop_tokens=[free[5]])
    assert stopped.tokens == free[: free.index(free[5]) + 1]
    assert stopped.report.num_forward_passes == free.index(free[5]) // 4 + 1


def test_networks_trained_on_blocks_are_told_of_block_diffusion() -> None:
    assert not generate().report.notes
    (note,) = generate({"block_size": 4}).report.notes
    assert note.startswith("tiny was trained on blocks of 4 tokens")
