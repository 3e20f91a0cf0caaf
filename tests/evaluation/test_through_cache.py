"""A likelihood through a cache of 8 bits is what an engine with that cache scores."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_encoder_decoder, tiny_engine, tiny_model
from tests.training.objectives.toys import pack, words

from anyorder.core.errors import UserError
from anyorder.evaluation.likelihood import chain_rule
from anyorder.evaluation.through_cache import ThroughCache
from anyorder.training.network import Trainee


def test_the_engine_scores_the_same_in_chunks() -> None:
    loaded = tiny_model()
    texts = [words(0, 12), words(1, 7), words(2, 30)]
    batches = [pack(texts[:2], length=25), pack([texts[2]])]
    found = {}
    for cache_dtype in (None, "int8"):
        network, abilities = loaded.network, loaded.abilities
        if cache_dtype is not None:
            network = ThroughCache(network, abilities, cache_dtype)
        assert isinstance(network, torch.nn.Module)
        trainee = Trainee(network=network, abilities=abilities)
        found[cache_dtype] = chain_rule(trainee, batches).nats
        engine = tiny_engine(cache_dtype=cache_dtype, max_batch_tokens=5)
        logprobs = [value for text in texts for value in engine.score(text).logprobs]
        assert found[cache_dtype] == pytest.approx(-sum(logprobs) / 46, rel=1e-6)
    assert abs(found["int8"] / found[None] - 1) > 1e-5


def test_what_has_no_such_cache_is_refused() -> None:
    for loaded, match in [
        (tiny_encoder_decoder(), "is an encoder-decoder"),
        (tiny_model(), "must be int8, got 'int2'"),
    ]:
        with pytest.raises(UserError, match=match):
            ThroughCache(loaded.network, loaded.abilities, "int2")
