"""Tiny encoder-decoders that fill in masks from a source, for methods that need such networks."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
from tests.tiny import END, VOCABULARY

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.model.config import ModelConfig
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import LoadedModel, abilities_of

MASK, START = 60, 1


def mask_filler(
    config: ModelConfig,
    cls: type[EncoderDecoder] = EncoderDecoder,
    *,
    mask: int = MASK,
    ends: bool = False,
) -> LoadedModel:
    """A random network that fills in masks, its weights large enough that they become different
    tokens; `ends`: there is a token that ends a text."""
    network = cls.random(config, seed=0, dtype=torch.float64, spread=0.4)
    network.embedding.weight.mul_(4.0)
    for layer in network.layers:
        layer.cross.out.weight.mul_(3.0)
        layer.attention.out.weight.mul_(6.0)
    abilities = dataclasses.replace(
        abilities_of("tiny", config, None),
        end_tokens=frozenset({END} if ends else ()),
        mask_token=mask,
        attention=frozenset({"bidirectional"}),
    )
    return LoadedModel(network=network, abilities=abilities)


def source(seed: int, length: int = 9) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCABULARY - 1) for _ in range(length)]


def everything(size: int) -> torch.Tensor:
    """[1, size, size]: all see all."""
    return torch.ones(1, size, size, dtype=torch.bool)


def encode(network: Any, tokens: list[int]) -> torch.Tensor:
    """The encoder's states of a source, without an engine."""
    states: torch.Tensor = network.encode(
        dense_batch(torch.tensor([tokens]), everything(len(tokens)))
    )
    return states


def hidden(network: Any, states: torch.Tensor, line: list[int]) -> torch.Tensor:
    """The decoder's final states of a line that sees all of itself, without an engine."""
    memory = CrossMemory(states_RSW=states[None])
    found: torch.Tensor = network.hidden(
        dense_batch(torch.tensor([line]), everything(len(line)), memory=memory)
    )
    return found
