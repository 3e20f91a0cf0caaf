"""Tiny encoder-decoders that write in one pass: a graph of vertices, or a row of them."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import torch
from tests.tiny import (
    END,
    VOCABULARY,
    assert_no_page_is_lost,
    tiny_encoder_decoder_config,
    tiny_engine,
)

from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.method import TextRules
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import LoadedModel, abilities_of

MASK, START, PER_TOKEN = 60, 1, 2


@functools.cache
def one_pass_model(*, linked: bool, ends: bool = False) -> LoadedModel:
    """Two vertices for each token of the source."""
    config = tiny_encoder_decoder_config(
        text_rules=TextRules(start_tokens=(START,)),
        vertices_per_token=PER_TOKEN,
        link_heads=4 if linked else 0,
        tied_embeddings=False,
    )
    network = EncoderDecoder.random(config, seed=0, dtype=torch.float64, spread=0.4)
    network.embedding.weight.mul_(4.0)
    for layer in network.layers:  # else every vertex says the same
        layer.cross.out.weight.mul_(3.0)
        layer.attention.out.weight.mul_(6.0)
    if not linked:
        network.head.weight[MASK] *= 2.0  # blanks are common
    abilities = dataclasses.replace(
        abilities_of("tiny", config, None),
        end_tokens=frozenset({END} if ends else ()),
        mask_token=MASK,
        attention=frozenset({"bidirectional"}),
    )
    return LoadedModel(network=network, abilities=abilities)


def source(seed: int, length: int = 9) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCABULARY - 1) for _ in range(length)]


def dense_hidden(network: Any, tokens: list[int]) -> torch.Tensor:
    """The final states of all vertices for a source, [vertices, width], without an engine."""
    count = PER_TOKEN * (len(tokens) + 2)

    def everything(size: int) -> torch.Tensor:
        return torch.ones(1, size, size, dtype=torch.bool)

    states = network.encode(dense_batch(torch.tensor([tokens]), everything(len(tokens))))
    batch = dense_batch(
        torch.tensor([[START, *[MASK] * (count - 1)]]),
        everything(count),
        memory=CrossMemory(states_RSW=states[None]),
    )
    found: torch.Tensor = network.hidden(batch)
    return found


def generate(
    method: str, tokens: list[int], engine: Engine | None = None, **fields: Any
) -> Completion:
    engine = engine or tiny_engine(model=one_pass_model(linked=method == "dag"))
    completion = engine.generate(Request(**{"prompt": tokens, "method": method, **fields}))
    assert_no_page_is_lost(engine)
    return completion
