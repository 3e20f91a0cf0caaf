"""Tiny encoder-decoders that write in one pass: a graph of vertices, or a row of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from tests.methods.encoder_decoders import (
    MASK,
    START,
    encode,
    hidden,
    mask_filler,
)
from tests.tiny import (
    assert_no_page_is_lost,
    tiny_encoder_decoder_config,
    tiny_engine,
)

from anyorder.core.method import TextRules
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel

PER_TOKEN = 2


@functools.cache
def one_pass_model(*, linked: bool, ends: bool = False) -> LoadedModel:
    """Two vertices for each token of the source."""
    config = tiny_encoder_decoder_config(
        text_rules=TextRules(start_tokens=(START,)),
        vertices_per_token=PER_TOKEN,
        link_heads=4 if linked else 0,
        tied_embeddings=False,
    )
    model = mask_filler(config, ends=ends)
    network: Any = model.network
    if not linked:
        network.head.weight[MASK] *= 2.0  # blanks are common
    return model


def dense_hidden(network: Any, tokens: list[int]) -> torch.Tensor:
    """The final states of all vertices for a source, [vertices, width], without an engine."""
    line = [START, *[MASK] * (PER_TOKEN * (len(tokens) + 2) - 1)]
    return hidden(network, encode(network, tokens), line)


def generate(
    method: str, tokens: list[int], engine: Engine | None = None, **fields: Any
) -> Completion:
    engine = engine or tiny_engine(model=one_pass_model(linked=method == "dag"))
    completion = engine.generate(Request(**{"prompt": tokens, "method": method, **fields}))
    assert_no_page_is_lost(engine)
    return completion
