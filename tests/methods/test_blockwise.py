"""Blockwise decoding writes the plain text, with the passes that its definition takes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from tests.methods.same_text import SITUATIONS, assert_same_text, greedy, ids
from tests.tiny import CONTEXT, tiny_config, tiny_engine, tiny_model
from torch import nn

from anyorder.core.batch import dense_batch
from anyorder.core.errors import UnsupportedMethod
from anyorder.core.method import Abilities
from anyorder.core.request import Request
from anyorder.model.config import ModelConfig
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

NUM_HEADS = 3


class Headed(Transformer):
    """A decoder with further random heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.further = nn.ModuleList(
            nn.Linear(config.width, config.vocabulary_size, bias=False) for _ in range(NUM_HEADS)
        )

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        return torch.stack([head(hidden_MW).float() for head in self.further], 1)


@functools.cache
def headed_model(vocabulary_size: int, seed: int = 0) -> LoadedModel:
    """With few tokens, random heads guess right now and then."""
    config = tiny_config(vocabulary_size=vocabulary_size)
    network = Headed.random(config, seed=seed, dtype=torch.float64)
    abilities = Abilities(
        name="tiny",
        vocabulary_size=vocabulary_size,
        context_length=CONTEXT,
        num_layers=2,
        num_heads=NUM_HEADS,
    )
    return LoadedModel(network=network, abilities=abilities, tokenizer=None)


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("size", [None, 2])
def test_writes_the_plain_text(size: int | None, situation: str) -> None:
    for completion in assert_same_text("blockwise", {"size": size}, situation, headed_model(61)):
        assert completion.report.exact
        if situation == "together" and len(completion.choices) == 1:
            assert completion.report.num_forward_passes <= len(completion.tokens)


def naive(
    model: LoadedModel, prompt: list[int], text: list[int], num_guesses: int
) -> tuple[int, int]:
    """Passes, and guesses that were right: what the heads guess at every place is known from one
    dense pass over the final text."""
    network: Any = model.network
    hidden_NW = network.hidden(dense_batch(torch.tensor([text])))
    guesses_NH = network.heads(hidden_NW).argmax(-1).tolist()
    num_final, num_passes, num_right = len(prompt) + 1, 1, 0
    while num_final < len(text):
        room = len(text) - num_final - 1
        # The row that drew the last token guesses what comes after that token.
        guesses = guesses_NH[num_final - 2][: min(num_guesses, room)]
        right = 0
        while right < len(guesses) and guesses[right] == text[num_final + right]:
            right += 1
        num_final += right + 1
        num_passes += 1
        num_right += right
    return num_passes, num_right


@pytest.mark.parametrize("size", [None, 1, 2, 64])
def test_takes_the_passes_of_its_definition(size: int | None) -> None:
    num_guesses = min(NUM_HEADS, (size or 64) - 1)
    total = 0
    for seed in range(6):
        model, prompt = headed_model(5, seed), [token % 5 for token in ids(seed, 6)]
        text = greedy(prompt, 40, model)
        num_passes, num_right = naive(model, prompt, text, num_guesses)
        request = Request(
            prompt=prompt, method="blockwise", options={"size": size}, max_new_tokens=40
        )
        completion = tiny_engine(model=model).generate(request)
        assert completion.tokens == text[len(prompt) :]
        assert completion.report.num_forward_passes == num_passes
        assert sum(entry.drafted for entry in completion.trace) == num_right
        total += num_right
    assert total > 40 or size == 1


def test_a_model_without_heads_is_refused() -> None:
    request = Request(prompt=[1], method="blockwise")
    with pytest.raises(UnsupportedMethod, match=r"blockwise needs .*heads.* autoregressive"):
        tiny_engine(model=tiny_model()).generate(request)


class _Sure:
    """A network whose heads all guess token 0."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        guesses: torch.Tensor = self._network.heads(hidden_MW)
        guesses[:, :, 0] = 1e3
        return guesses


def test_heads_that_guess_right_save_all_passes_but_one_in_four() -> None:
    network: Any = _Sure(headed_model(61).network)
    model = dataclasses.replace(headed_model(61), network=network)
    request = Request(prompt=[1, 2], method="blockwise", max_new_tokens=21, logit_bias={0: 100.0})
    completion = tiny_engine(model=model).generate(request)
    assert completion.tokens == [0] * 21
    assert completion.report.num_forward_passes == 1 + 20 // (NUM_HEADS + 1)
