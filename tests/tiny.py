"""Tiny random models for tests of the engine and the methods; no weights, no tokenizer files."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Container
from typing import Any

import torch

from anyorder.core.method import Abilities, TextRules
from anyorder.engine.engine import Engine
from anyorder.model.config import LayerConfig, ModelConfig, Rope
from anyorder.model.encoder_decoder import EncoderDecoder
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.transformer import Transformer

VOCABULARY = 61
CONTEXT = 256
END = 0


def tiny_config(**changes: Any) -> ModelConfig:
    """Two layers, four heads over two key heads, 61 tokens."""
    layer = LayerConfig(rope=Rope(width=8), attention_scale=8**-0.5)
    fields: dict[str, Any] = {
        "architecture": "llama",
        "vocabulary_size": VOCABULARY,
        "width": 32,
        "context_length": CONTEXT,
        "layers": (layer, layer),
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 8,
        "mlp_width": 48,
        "activation": "silu",
        "gated": True,
        "norm": "rms",
        "norm_epsilon": 1e-5,
    }
    return ModelConfig(**{**fields, **changes})


def tiny_encoder_decoder_config(**changes: Any) -> ModelConfig:
    """`tiny_config` with an encoder of the same kind."""
    own = {"length_classes", "text_rules", "vertices_per_token", "link_heads", "insertion_classes"}
    encoder = tiny_config(**{name: value for name, value in changes.items() if name not in own})
    return tiny_config(**changes, encoder=encoder)


@functools.cache
def tiny_model(seed: int = 0, *, tokenizer: Any = None, ends: bool = True) -> LoadedModel:
    """A random model in float64, so that results can be compared exactly."""
    network = Transformer.random(tiny_config(), seed=seed, dtype=torch.float64)
    abilities = Abilities(
        name="tiny",
        vocabulary_size=VOCABULARY,
        context_length=CONTEXT,
        num_layers=2,
        end_tokens=frozenset({END} if ends else ()),
    )
    return LoadedModel(network=network, abilities=abilities, tokenizer=tokenizer)


@functools.cache
def tiny_encoder_decoder(
    *, ends: bool = True, text_rules: TextRules | None = None, **changes: Any
) -> LoadedModel:
    """A random encoder-decoder in float64 whose texts begin with token 1."""
    rules = text_rules or TextRules(start_tokens=(1,))
    config = tiny_encoder_decoder_config(text_rules=rules, **changes)
    network = EncoderDecoder.random(config, seed=0, dtype=torch.float64)
    for layer in network.layers:  # else a tied head repeats the last token, whatever the source
        layer.cross.out.weight.mul_(6.0)
    abilities = dataclasses.replace(
        abilities_of("tiny", config, None), end_tokens=frozenset({END} if ends else ())
    )
    return LoadedModel(network=network, abilities=abilities)


def tiny_engine(**changes: Any) -> Engine:
    """An engine over the tiny model, with a small pool."""
    model = changes.pop("model", None) or tiny_model()
    return Engine(model, **{"cache_tokens": 4096, **changes})


def run_out(engine: Engine, preempt_at: Container[int] = ()) -> None:
    """Tick until nothing is left to do; before some ticks all that runs is preempted."""
    for tick in itertools.count():
        assert tick < 1000, "no progress"
        if tick in preempt_at:
            for run in list(engine._scheduler.running):
                engine._scheduler._preempt(run)
        if not engine.tick():
            return


def assert_no_page_is_lost(engine: Engine) -> None:
    """Nothing runs any more, so every page is free or only remembered by the prefix cache."""
    for role in engine.roles.values():
        assert role.store.num_available == role.store.num_pages
