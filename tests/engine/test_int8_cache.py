"""A cache of 8 bits under every method: as an exact cache of rounded numbers, whoever shares it."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from tests.cache.test_int8_pool import rounded
from tests.methods.test_contract import METHODS, assert_equal, contract_engine, fits, requests_of
from tests.tiny import (
    assert_no_page_is_lost,
    run_out,
    tiny_encoder_decoder,
    tiny_engine,
    tiny_model,
)

from anyorder.cache.int8_pool import Int8Pool
from anyorder.cache.pool import Pool
from anyorder.core.errors import UserError
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine

REQUESTS = [requests_of(method)[index] for method in METHODS for index in (1, -1)]


class RoundingPool(Pool):
    """The same without any int8: numbers are rounded when they come in."""

    def write(self, layer, slots_N, keys_NGD, values_NGD):
        keys, values = (rounded(new).to(new) for new in (keys_NGD, values_NGD))
        return super().write(layer, slots_N, keys, values)


def twin(engine: Engine) -> Engine:
    """The engine, with exact pools of rounded numbers."""
    for name, role in engine.roles.items():
        pool = RoundingPool(
            role.network.cache_shapes,
            num_pages=role.store.num_pages,
            page_size=role.store.page_size,
            dtype=role.network.dtype,
            device=role.network.device,
        )
        role.store.pool = pool
        engine.roles[name] = dataclasses.replace(role, pool=pool)
    return engine


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    """Every request alone, on the twin."""
    return [
        twin(contract_engine()).generate(dataclasses.replace(request, prefix_cache=False))
        for request in REQUESTS
    ]


def assert_same(engine: Engine, alone: list[Completion], seed: int) -> None:
    order = [index for index in range(len(REQUESTS)) if fits(engine, REQUESTS[index])]
    assert len(order) > 0.9 * len(REQUESTS)
    random.Random(seed).shuffle(order)
    completions = engine.generate([REQUESTS[index] for index in order])
    for index, completion in zip(order, completions, strict=True):
        assert_equal(completion, alone[index])
    assert_no_page_is_lost(engine)


def test_all_methods_together_write_what_the_rounding_twin_writes_alone(
    alone: list[Completion],
) -> None:
    engine = contract_engine(cache_dtype="int8")
    assert all(isinstance(role.pool, Int8Pool) for role in engine.roles.values())
    assert_same(engine, alone, 1)
    assert_same(engine, alone, 2)  # with every prefix cached


def test_chunks_and_a_crowded_pool_change_nothing(alone: list[Completion]) -> None:
    assert_same(
        contract_engine(cache_dtype="int8", max_batch_tokens=33, cache_tokens=400), alone, 3
    )


def test_preemption_changes_nothing(alone: list[Completion]) -> None:
    engine = contract_engine(cache_dtype="int8")
    handles = [engine.submit(request) for request in REQUESTS]
    run_out(engine, (3, 9, 20))
    for handle, expected in zip(handles, alone, strict=True):
        assert_equal(handle.result(), expected)


def test_it_rounds() -> None:
    """Else the tests above would compare nothing."""
    request = Request(prompt=[5, 9, 2, 7] * 5, max_new_tokens=8)
    exact, int8 = (tiny_engine(cache_dtype=kind).generate(request) for kind in (None, "int8"))
    difference = torch.tensor(exact.logprobs[:1]) - torch.tensor(int8.logprobs[:1])
    assert 1e-7 < difference.abs().max() < 0.1


def test_speculation_writes_what_is_written_without_it() -> None:
    engine = tiny_engine(draft=tiny_model(1), cache_dtype="int8")
    for temperature in (0.0, 1.0):
        plain, speculative = (
            engine.generate([5, 9, 2, 7] * 5, method=method, temperature=temperature, seed=3)
            for method in ("autoregressive", "speculative")
        )
        assert plain.tokens == speculative.tokens


def test_an_encoders_pages_are_rounded_too() -> None:
    model = tiny_encoder_decoder(ends=False)
    request = Request(prompt=[4, 8, 15, 16, 23], max_new_tokens=9)
    exact = tiny_engine(model=model).generate(request)
    int8 = tiny_engine(model=model, cache_dtype="int8").generate(request)
    expected = twin(tiny_engine(model=model)).generate(request)
    assert_equal(int8, expected)
    assert int8.logprobs != pytest.approx(exact.logprobs, abs=1e-7)


def test_other_types_are_refused() -> None:
    with pytest.raises(UserError, match="cache_dtype must be int8, got 'int4'"):
        tiny_engine(cache_dtype="int4")


def test_the_same_memory_holds_more_tokens() -> None:
    plain, int8 = (
        tiny_engine(cache_tokens=None, cache_dtype=kind).roles["target"] for kind in (None, "int8")
    )
    # Room for 64 contexts either way: the tiny model's pages cost nothing.
    assert plain.num_cache_tokens == int8.num_cache_tokens == 64 * 256
