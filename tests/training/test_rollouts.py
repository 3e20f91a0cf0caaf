"""Rollouts against dense passes without a cache, against the engine, and against probabilities."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from tests.tiny import CONTEXT, tiny_config, tiny_engine, tiny_model
from tests.training.objectives.toys import words

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UserError
from anyorder.core.method import Abilities
from anyorder.core.request import Request
from anyorder.model.config import LayerConfig, Rope
from anyorder.model.transformer import Transformer
from anyorder.training.rollouts import ContiguousCache, generate

MODEL = tiny_model()
PROMPTS = [words(1, 5), words(2, 9), words(1, 5), words(3, 1), words(4, 9)]


def roll(prompts: list[list[int]], seed: int = 0, **changes: Any) -> list[list[int]]:
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, **changes}
    rng = torch.Generator().manual_seed(seed)
    return generate(MODEL.network, MODEL.abilities, prompts, rng=rng, **options)  # type: ignore[arg-type]


@torch.no_grad()
def greedy_without_cache(network: Transformer, prompt: list[int], ends: set[int]) -> list[int]:
    text: list[int] = []
    while len(text) < 12 and not set(text[-1:]) & ends:
        hidden = network.hidden(dense_batch(torch.tensor([[*prompt, *text]])))
        text.append(int(network.logits(hidden[-1:]).argmax()))
    return text


def test_greedy_texts_are_those_of_dense_passes() -> None:
    ends = set(MODEL.abilities.end_tokens)
    found = roll(PROMPTS)
    assert found == [greedy_without_cache(MODEL.network, prompt, ends) for prompt in PROMPTS]
    assert found[0] == found[2]


@pytest.mark.parametrize("change", ["window", "learned", "alibi"])
def test_positions_are_right_in_every_kind_of_attention(change: str) -> None:
    layer = LayerConfig(rope=None, attention_scale=8**-0.5)
    changes: dict[str, Any] = {
        "window": {"layers": (LayerConfig(rope=Rope(width=8), attention_scale=1.0, window=4),) * 2},
        "learned": {"layers": (layer, layer), "learned_positions": 64},
        "alibi": {"layers": (layer, layer), "alibi": True},
    }[change]
    network = Transformer.random(tiny_config(**changes), seed=3, dtype=torch.float64)
    rng = torch.Generator()
    found = generate(network, MODEL.abilities, PROMPTS, max_new_tokens=12, temperature=0.0, rng=rng)
    ends = set(MODEL.abilities.end_tokens)
    assert found == [greedy_without_cache(network, prompt, ends) for prompt in PROMPTS]


def test_the_kernels_write_the_same_texts() -> None:
    """Networks of a size that the compiled layers take, in float32; equal prompts run once."""
    layer = LayerConfig(rope=Rope(width=32), attention_scale=32**-0.5)
    changes: dict[str, Any] = {"num_heads": 2, "num_kv_heads": 1, "head_width": 32, "width": 64}
    config = tiny_config(**changes, layers=(layer, layer), mlp_width=64)
    network = Transformer.random(config, seed=3, dtype=torch.float32)
    prompts = PROMPTS * 3
    rng = torch.Generator()
    found = generate(network, MODEL.abilities, prompts, max_new_tokens=12, temperature=0.0, rng=rng)
    ends = set(MODEL.abilities.end_tokens)
    assert found == [greedy_without_cache(network, prompt, ends) for prompt in PROMPTS] * 3


def test_greedy_texts_are_the_engines() -> None:
    engine = tiny_engine()
    for prompt, text in zip(PROMPTS, roll(PROMPTS), strict=True):
        request = Request(prompt=prompt, max_new_tokens=12)
        assert engine.generate(request).tokens == text


def test_end_tokens_end_their_text_alone() -> None:
    drawn = roll([PROMPTS[0]] * 300, temperature=2.0)
    (end,) = MODEL.abilities.end_tokens
    ended = [text for text in drawn if end in text]
    assert 20 < len(ended) < 280
    assert all(text.index(end) == len(text) - 1 for text in ended)
    assert all(len(text) == 12 for text in drawn if end not in text)


def test_draws_follow_the_model() -> None:
    """All texts of two tokens, by the chain rule."""
    config = tiny_config(vocabulary_size=3)
    network = Transformer.random(config, seed=1, dtype=torch.float64)
    abilities = Abilities(name="three", vocabulary_size=3, context_length=CONTEXT)
    count, temperature = 20000, 1.7
    rng = torch.Generator().manual_seed(0)
    drawn = generate(
        network, abilities, [[1, 2]] * count, max_new_tokens=2, temperature=temperature, rng=rng
    )
    counts = Counter(map(tuple, drawn))
    for text in itertools.product(range(3), repeat=2):
        hidden = network.hidden(dense_batch(torch.tensor([[1, 2, *text]])))
        logprobs = (network.logits(hidden) / temperature).log_softmax(-1)
        expected = math.exp(logprobs[1, text[0]] + logprobs[2, text[1]])
        error = math.sqrt(expected * (1 - expected) / count)
        assert abs(counts[text] / count - expected) < 4.5 * error


def test_top_p_keeps_the_likeliest_only() -> None:
    assert roll(PROMPTS, temperature=1.0, top_p=1e-9) == roll(PROMPTS)
    assert roll(PROMPTS, temperature=1.0) != roll(PROMPTS)


def test_a_text_depends_on_its_place_and_the_seed_alone() -> None:
    drawn = roll(PROMPTS, temperature=1.5)
    assert drawn == roll(PROMPTS, temperature=1.5) != roll(PROMPTS, seed=1, temperature=1.5)
    assert drawn[0] != drawn[2], "equal prompts get draws of their own"
    # Others that end elsewhere, in front of the same last prompt.
    (end,) = MODEL.abilities.end_tokens
    two = [roll([[word]] * 39 + [PROMPTS[1]], temperature=2.0) for word in (8, 9)]
    ended = [[text[-1] == end for text in texts] for texts in two]
    assert ended[0] != ended[1] and not ended[0][-1]
    assert two[0][-1] == two[1][-1] and len(two[0][-1]) == 12


def test_the_last_token_may_fill_the_context() -> None:
    prompt = [3] * (CONTEXT - 2)
    assert len(roll([prompt], max_new_tokens=2, temperature=1.0)[0]) == 2
    with pytest.raises(UserError, match="254 tokens and 3 new ones do not fit"):
        roll([prompt], max_new_tokens=3)
    with pytest.raises(UserError, match="a prompt has at least one"):
        roll([[1], []])
    assert roll([]) == []


def test_texts_are_spread_where_they_lie() -> None:
    """Kernels keep the addresses of a pool's pages."""
    cache = ContiguousCache(tiny_model().network, num_texts=3, capacity=4)
    for layer in range(2):
        for number, stored in enumerate(cache.pages(layer)):
            stored += torch.arange(3).view(3, 1, 1, 1) + 10 * number
    before = [stored.data_ptr() for layer in range(2) for stored in cache.pages(layer)]
    cache.spread([1, 0, 1])
    assert before == [stored.data_ptr() for layer in range(2) for stored in cache.pages(layer)]
    for layer in range(2):
        keys, values = cache.pages(layer)
        assert keys[:, 0, 0, 0].tolist() == [1, 0, 1] and values[:, -1, 0, -1].tolist() == [
            11,
            10,
            11,
        ]
