"""Passes padded to few shapes and repeated give the tokens of passes that are run as they are.

There is no GPU here: what repeats a pass runs its function again, and sees to it that the function
never touches a tensor that was not there when it was recorded, nor does what a CUDA graph cannot
(ask for a value, make a tensor whose size depends on one). That CUDA graphs do the same is not
tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import ragged_twin, test_dit
from tests.methods.test_contract import ALL, METHODS, assert_equal, contract_engine
from tests.model.test_moe import EXPERTS
from tests.tiny import assert_no_page_is_lost, tiny_config, tiny_engine, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from anyorder.cache.pool import Pool
from anyorder.core.attention import Tree
from anyorder.core.batch import KeyValuePool, PackedBatch, RaggedRows
from anyorder.core.request import Request
from anyorder.engine import roles, static_passes
from anyorder.engine.static_passes import RECORDED_AT, StaticPasses
from anyorder.model.backends import ragged
from anyorder.model.backends.sdpa import Pattern
from anyorder.model.moe import is_static
from anyorder.model.transformer import Transformer

NOT_IN_A_GRAPH = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "lift_fresh"}
"""The last is what `torch.tensor` does, a copy from the host."""


class Watch(TorchDispatchMode):
    """Notes where the tensors lie that operations read and did not make."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self._made: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in NOT_IN_A_GRAPH, func
        self.note(args, kwargs)
        result = func(*args, **(kwargs or {}))
        self.made(result)
        return result

    def note(self, *things: Any) -> None:
        places = {place(thing) for thing in tree_iter(things) if isinstance(thing, torch.Tensor)}
        self.read |= places - self._made.keys()

    def made(self, *things: Any) -> None:
        """Kept, so that nothing else comes to lie where they are."""
        for thing in tree_iter(things):
            if isinstance(thing, torch.Tensor) and place(thing) not in self.read:
                self._made[place(thing)] = thing


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Repeater:
    """Runs again what it recorded."""

    watch: Watch | None = None

    def __init__(self) -> None:
        self.num_repeated = 0
        self._last: torch.Tensor | None = None

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self._watched(run)
        _, recorded = self._watched(run)

        def repeat() -> torch.Tensor:
            if self._last is not None:
                self._last.fill_(torch.nan)  # holds until another is repeated
            self.num_repeated += 1
            self._last, read = self._watched(run)
            assert read == recorded
            return self._last

        return repeat

    @staticmethod
    def _watched(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, set[int]]:
        with Watch() as watch:
            Repeater.watch = watch
            hidden_NW = run()
            Repeater.watch = None
        return hidden_NW, watch.read


def attend(
    queries_NHD: torch.Tensor, batch: PackedBatch, pool: KeyValuePool, layer: int, pattern: Pattern
) -> torch.Tensor:
    """As a kernel, which nobody looks into."""
    if Repeater.watch is None:
        return ragged_twin.attend(queries_NHD, batch, pool, layer, pattern)
    rows = batch.ragged
    assert rows is not None
    Repeater.watch.note(
        *(queries_NHD, batch.slots_N, batch.positions_N, pool.pages(layer)),
        *(rows.requests_R5, rows.pages_TP, rows.visible_M, rows.window_positions_N),
    )
    with _disable_current_modes():
        mixed = ragged_twin.attend(queries_NHD, batch, pool, layer, pattern)
    Repeater.watch.made(mixed)
    return mixed


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Repeater]]:
    """Engines repeat their passes on a CPU; what repeats them, one for each role."""
    found: list[Repeater] = []

    def recorder_for(device: torch.device) -> Repeater:
        found.append(Repeater())
        return found[-1]

    monkeypatch.setattr(ragged, "serves", lambda device, dtype: True)
    monkeypatch.setattr(ragged, "attend", attend)
    monkeypatch.setattr(roles, "recorder_for", recorder_for)
    yield found


@pytest.mark.parametrize("most", [48, 2])
def test_all_methods_give_the_same(
    most: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = ALL[most == 2 :: 3 if most > 2 else 5]
    expected = contract_engine().generate(some)
    monkeypatch.setattr(static_passes, "MOST_RECORDS", most)
    repeaters = request.getfixturevalue("repeated")
    engine = contract_engine(max_batch_tokens=200)
    for completion, other in zip(engine.generate(some[::-1]), expected[::-1], strict=True):
        assert_equal(completion, other)
    assert_no_page_is_lost(engine)
    if most > 2:
        assert {item.method for item in some} == set(METHODS)
        assert all(repeater.num_repeated > 20 for repeater in repeaters)
    for role in engine.roles.values():
        assert role.static is not None and role.static.num_records <= most


def test_networks_that_look_at_noise(
    repeated: list[Repeater], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the dense twin has it; every pass but the first has noise of its own."""
    monkeypatch.setattr(static_passes, "RECORDED_AT", 1)
    test_dit.test_mdlm(True, tmp_path)
    assert repeated[0].num_repeated == test_dit.LENGTH


TABLE = torch.tensor([[2, 5], [0, 1], [5, 3]])


def pass_of(table: torch.Tensor, *, first_token: int) -> PackedBatch:
    """Two requests of two and three tokens, the second a tree."""
    visible_M = Tree(parents=(-1, 0, 0)).visible(3).flatten()
    positions_N = torch.tensor([0, 1, 4, 5, 5])
    return PackedBatch(
        tokens_N=torch.arange(first_token, first_token + 5),
        positions_N=positions_N,
        slots_N=torch.tensor([8, 9, 4, 5, 6]),
        groups=(),
        ragged=RaggedRows(
            requests_R5=torch.tensor([[0, 2, 0, 0, -1], [2, 3, 4, 1, 0]]),
            pages_TP=table,
            visible_M=visible_M,
            window_positions_N=positions_N,
            most_rows=3,
            most_keys=7,
        ),
        taps={1: None},
    )


@torch.inference_mode()
def test_padding_changes_no_row_and_no_page_but_the_blank_one(repeated: list[Repeater]) -> None:
    network = Transformer.random(tiny_config(), seed=0, dtype=torch.float64)
    place = {"page_size": 4, "device": torch.device("cpu"), "dtype": torch.float64}
    pools = [Pool(network.cache_shapes, num_pages=5, **place) for _ in range(2)]
    for pool in pools:
        for stored in pool.tensors():
            stored[: pool.blank] = 3
    repeater = Repeater()
    static = StaticPasses(network, pools[1], repeater)
    hidden: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    moved = torch.cat((TABLE, TABLE))  # as it does when it grows
    for first_token in range(1, 10):
        table = TABLE if first_token < 8 else moved
        plain, padded = (pass_of(table, first_token=first_token) for _ in pools)
        hidden.append(static.hidden(padded))
        expected.append(network.hidden(plain, pools[0]))
        torch.testing.assert_close(hidden, expected)  # earlier ones too: they are the engine's
        torch.testing.assert_close(padded.taps[1], plain.taps[1])
        for stored, other in zip(pools[1].tensors(), pools[0].tensors(), strict=True):
            torch.testing.assert_close(stored[:-1], other[:-1])
            assert stored[-1].isfinite().all()
    assert repeater.num_repeated == 8 - RECORDED_AT
    assert static.num_records == 1


def test_long_passes_and_rare_ones_are_run_as_they_are(repeated: list[Repeater]) -> None:
    engine = tiny_engine(max_batch_tokens=1024)
    prompts = [[5] * 200, [6] * 200]
    engine.generate([Request(prompt=prompt, max_new_tokens=3) for prompt in prompts])
    assert repeated[0].num_repeated == 0
    engine.generate(Request(prompt=[5], max_new_tokens=9))
    assert repeated[0].num_repeated > 0
    static = engine.roles["target"].static
    assert static is not None and static.num_records == 1


def test_networks_that_ask_for_values_are_run_as_they_are(repeated: list[Repeater]) -> None:
    """Such as those with experts."""
    layer = dataclasses.replace(tiny_config().layers[0], experts=EXPERTS)
    network = Transformer.random(tiny_config(layers=(layer, layer)), seed=0)
    assert is_static(Transformer.random(tiny_config(), seed=0)) and not is_static(network)
    engine = tiny_engine(model=dataclasses.replace(tiny_model(), network=network))
    assert engine.roles["target"].static is None and engine.roles["target"].attends_ragged
    with pytest.raises(AssertionError, match="bincount"), Watch():
        network.layers[0].mlp(torch.zeros(2, 32))


def test_on_a_cpu_nothing_is_repeated() -> None:
    assert all(role.static is None for role in tiny_engine().roles.values())
