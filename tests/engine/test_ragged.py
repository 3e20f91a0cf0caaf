"""Engines whose passes are attended in one call a layer give the tokens that they give by groups.

All methods run with the call written out in plain torch (`ragged_twin`), and a few with the kernels
themselves under Triton's interpreter.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.engine import ragged_twin, test_attention
from tests.methods.test_contract import ALL, METHODS, assert_equal, contract_engine
from tests.tiny import assert_no_page_is_lost, tiny_config, tiny_engine

from anyorder.core.request import Request
from anyorder.engine import runner
from anyorder.engine.engine import Engine
from anyorder.engine.scheduler import Piece
from anyorder.model import attention
from anyorder.model.backends import ragged
from anyorder.model.config import LayerConfig, Rope
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.settings import settings
from anyorder.model.transformer import Transformer

COPIES = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network that the kernels could take is attended by their definition."""
    monkeypatch.setattr(ragged, "serves", lambda device, dtype: True)
    monkeypatch.setattr(ragged, "attend", ragged_twin.attend)


def windowed() -> LoadedModel:
    """A model whose first layer has a window, that knows masks."""
    wide = LayerConfig(rope=Rope(width=8), attention_scale=8**-0.5)
    near = dataclasses.replace(wide, window=7)
    config = tiny_config(layers=(near, wide))
    network = Transformer.random(config, seed=0, dtype=torch.float64)
    abilities = dataclasses.replace(
        abilities_of("tiny", config, None),
        attention=frozenset({"causal", "bidirectional"}),
        mask_token=60,
        block_size=5,
    )
    return LoadedModel(network=network, abilities=abilities)


def test_all_methods_in_one_call_a_layer(request: pytest.FixtureRequest) -> None:
    some = ALL[1::3]
    assert {item.method for item in some} == set(METHODS)
    plain = contract_engine()
    expected = plain.generate(some)
    request.getfixturevalue("twin")
    engine = contract_engine()
    assert all(role.attends_ragged for role in engine.roles.values())
    assert not any(role.attends_ragged for role in plain.roles.values())
    for completion, other in zip(engine.generate(some[::-1]), expected[::-1], strict=True):
        assert_equal(completion, other)
    assert_no_page_is_lost(engine)


def requests() -> list[Request]:
    """Methods with masks of every kind; trees that are cut back leave keys in another order."""
    trees = {"drafter": {"name": "draft_model", "branches": "2,2"}, "adaptive": False}
    texts = [
        Request(prompt=COPIES, method="autoregressive", max_new_tokens=7),
        Request(prompt=COPIES[:5], method="speculative", max_new_tokens=12, options=trees),
        Request(prompt=COPIES, method="block_diffusion", max_new_tokens=8),
    ]
    guesses = {"adaptive": False}
    return [*texts, Request(prompt=COPIES, method="lookahead", max_new_tokens=8, options=guesses)]


def test_windows(request: pytest.FixtureRequest) -> None:
    models = {"model": windowed(), "draft": windowed()}
    expected = tiny_engine(**models).generate(requests())
    request.getfixturevalue("twin")
    found = tiny_engine(**models).generate(requests())
    for completion, other in zip(found, expected, strict=True):
        assert_equal(completion, other)


@pytest.mark.parametrize("changes", [{}, {"window": 3}], ids=str)
def test_windows_over_what_is_stored_in_another_order_go_by_groups(
    changes: dict[str, int], twin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one call cannot describe."""
    kinds = []
    fits = runner.fits

    def noted(pieces: list[Piece], has_windows: bool) -> bool:
        kinds.append(fits(pieces, has_windows))
        return kinds[-1]

    monkeypatch.setattr(runner, "fits", noted)
    test_attention.test_stored_in_another_order(changes)
    assert set(kinds) == ({False, True} if changes else {True})


@pytest.mark.parametrize("changes", [{"alibi": True}, {"num_heads": 1, "head_width": 512}], ids=str)
def test_what_kernels_do_not_take_runs_by_groups(changes: dict[str, object], twin: None) -> None:
    if "head_width" in changes:
        changes = {**changes, "num_kv_heads": 1}
    network = Transformer.random(tiny_config(**changes), seed=0)
    assert not attention.attends_ragged(network)
    assert attention.attends_ragged(Transformer.random(tiny_config(), seed=0))


def test_on_a_cpu_nothing_changes() -> None:
    assert not ragged.serves(torch.device("cpu"), torch.float32)
    assert not any(role.attends_ragged for role in tiny_engine().roles.values())


@pytest.mark.skipif(
    not settings().interprets_kernels,
    reason="runs in a process of its own, see tests/model/test_ragged_attention.py",
)
@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_the_kernels_in_an_engine(cache_dtype: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Transformer.random(tiny_config(), seed=0)
    abilities = dataclasses.replace(windowed().abilities, num_layers=2)
    model = LoadedModel(network=network, abilities=abilities)
    sizes = {"cache_tokens": 256, "cache_dtype": cache_dtype}
    some = [dataclasses.replace(request, max_new_tokens=4) for request in requests()[:3]]
    with monkeypatch.context() as patch:
        patch.setattr(ragged, "serves", lambda device, dtype: False)
        expected = Engine(model, draft=model, **sizes).generate(some)
    engine = Engine(model, draft=model, **sizes)
    assert all(role.attends_ragged for role in engine.roles.values())
    for completion, other in zip(engine.generate(some), expected, strict=True):
        assert completion.tokens == other.tokens
