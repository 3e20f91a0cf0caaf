"""Every attention kind through pages, chunks and replay equals one dense pass without a cache."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tiny import VOCABULARY, assert_no_page_is_lost, tiny_config, tiny_engine, tiny_model

from anyorder.core.attention import (
    BIDIRECTIONAL,
    CAUSAL,
    Attention,
    Bidirectional,
    Blocks,
    Explicit,
    Groups,
    Tree,
)
from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.core.forward import (
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.engine.handle import Handle
from anyorder.model.transformer import Transformer

LOGITS = Outputs(token=False, logprob=False, logits=True)
KINDS: list[Attention] = [
    CAUSAL,
    BIDIRECTIONAL,
    Blocks(size=4),
    Groups(ids=(0, 0, 1, 1, 1, 2, 0, 2)),
    Tree(parents=(-1, 0, 0, 1, 1, 2, -1, 6)),
    Explicit(mask=tuple(tuple((i * j) % 3 != 1 or i == j for j in range(8)) for i in range(8))),
]


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


def submit(engine: Engine, prompt: list[int], script: Callable[[Context], Decoding]) -> Handle:
    """Run a decoding loop that is no file of the package."""

    class Scripted(Method):
        def decode(self, context: Context) -> Decoding:
            return script(context)

    request = Request(prompt=prompt, max_new_tokens=1)
    prepared = dataclasses.replace(engine._admission.prepare(request), method=Scripted())
    return engine._queue(prepared, [None])


def drain(engine: Engine, preempt_after: tuple[int, ...] = ()) -> None:
    ticks = 0
    while engine.tick():
        ticks += 1
        assert ticks < 1000, "no progress"
        if ticks in preempt_after:
            for run in list(engine._scheduler.running):
                engine._scheduler._preempt(run)


def dense(prompt: list[int], tokens: list[int], attention: Attention) -> torch.Tensor:
    """Logits of `tokens` after `prompt`, by one pass over everything."""
    network: Any = tiny_model().network
    past, new = len(prompt), len(tokens)
    visible = torch.ones(past + new, past + new, dtype=torch.bool).tril()
    visible[past:, past:] = attention.visible(new)
    positions = torch.tensor([*range(past), *(past + depth for depth in attention.depths(new))])
    group = AttentionGroup(
        first_row=0,
        num_requests=1,
        num_queries=past + new,
        pages_RP=None,
        query_positions_RQ=positions[None],
        key_positions_RK=positions[None],
        visible_RQK=visible[None],
    )
    batch = PackedBatch(
        tokens_N=torch.tensor(prompt + tokens),
        positions_N=positions,
        slots_N=None,
        groups=(group,),
    )
    return network.logits(network.hidden(batch, None)[past:])


@pytest.mark.parametrize("attention", KINDS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("num_past", [0, 5, 33])
@pytest.mark.parametrize("preempt_after", [(), (1, 2, 3), (2, 8, 15, 19), (3, 10, 17, 21)])
def test_equals_a_dense_pass(
    attention: Attention, num_past: int, preempt_after: tuple[int, ...]
) -> None:
    prompt, tokens, after = ids(1, max(num_past, 1)), ids(2, 8), ids(3, 2)
    past = prompt[:num_past]
    got: dict[str, Any] = {}

    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            if past:
                yield from forward(sequence, past, 0)
            # First noise, then the tokens that count: the second start discards the first run.
            yield from forward(sequence, ids(9, 8), len(past), attention=attention)
            result = yield from forward(
                sequence, tokens, len(past), attention=attention, rows=range(8), outputs=LOGITS
            )
            got["span"] = result.logits
            # What follows causally depends on how the span was run, even when cut off inside it.
            result = yield from forward(
                sequence, after, len(past) + 8, rows=range(2), outputs=LOGITS
            )
            got["after"] = result.logits
            result = yield from forward(sequence, after, len(past) + 5, outputs=LOGITS)
            got["cut"] = result.logits
        context.emit([1], [0.0])

    engine = tiny_engine(max_batch_tokens=6)
    handle = submit(engine, prompt, script)
    neighbours = [engine.submit(Request(prompt=ids(7, n), max_new_tokens=9)) for n in (3, 20)]
    drain(engine, preempt_after)
    handle.result()
    assert all(neighbour.result() for neighbour in neighbours)
    torch.testing.assert_close(got["span"], dense(past, tokens, attention), atol=1e-6, rtol=0)
    if not isinstance(attention, Tree):  # positions after a tree depend on the branch taken

        def following(length: int) -> torch.Tensor:
            kept = attention.visible(8)
            full = torch.ones(10, 10, dtype=torch.bool).tril()
            full[:8, :8] = kept
            mask = Explicit(mask=tuple(tuple(row) for row in full.tolist()))
            return dense(past, [*tokens, *after], mask)[8:]

        torch.testing.assert_close(got["after"], following(8), atol=1e-6, rtol=0)
    if isinstance(attention, Blocks):
        # Positions 0..4 kept: the fifth token's keys came from seeing its whole block.
        full = torch.zeros(10, 10, dtype=torch.bool)
        full[:8, :8] = attention.visible(8)
        full[8:, :5] = True
        full[8, 8] = full[9, 8] = full[9, 9] = True
        network: Any = tiny_model().network
        num = len(past)
        visible = torch.ones(num + 10, num + 10, dtype=torch.bool).tril()
        visible[num:, num:] = full
        positions = torch.tensor([*range(num + 8), num + 5, num + 6])
        group = AttentionGroup(
            first_row=0,
            num_requests=1,
            num_queries=num + 10,
            pages_RP=None,
            query_positions_RQ=positions[None],
            key_positions_RK=positions[None],
            visible_RQK=visible[None],
        )
        batch = PackedBatch(
            tokens_N=torch.tensor([*past, *tokens, *after]),
            positions_N=positions,
            slots_N=None,
            groups=(group,),
        )
        want = network.logits(network.hidden(batch, None)[-1:])
        torch.testing.assert_close(got["cut"], want, atol=1e-6, rtol=0)
    assert_no_page_is_lost(engine)


def test_a_hole_in_the_cache_fails_the_request_that_left_it() -> None:
    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, [1, 2], 0)
            yield from forward(sequence, [3], 5)

    engine = tiny_engine()
    handle = submit(engine, [1], script)
    good = engine.submit(Request(prompt=[1, 2], max_new_tokens=3))
    drain(engine)
    with pytest.raises(Exception, match="hole in the cache"):
        handle.result()
    assert good.result().tokens
    assert_no_page_is_lost(engine)


def test_a_two_way_span_larger_than_the_budget_runs_whole() -> None:
    tokens = ids(4, 40)
    got: dict[str, Any] = {}

    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            result = yield from forward(
                sequence, tokens, 0, attention=BIDIRECTIONAL, rows=range(40), outputs=LOGITS
            )
            got["logits"] = result.logits
        context.emit([1], [0.0])

    engine = tiny_engine(max_batch_tokens=16)
    handle = submit(engine, [1], script)
    neighbour = engine.submit(Request(prompt=ids(5, 40), max_new_tokens=4))
    drain(engine)
    assert handle.result().report.num_forward_passes == 1 and neighbour.result()
    torch.testing.assert_close(got["logits"], dense([], tokens, BIDIRECTIONAL), atol=1e-6, rtol=0)


def test_a_role_of_its_own_has_a_cache_of_its_own() -> None:
    """A draft model runs beside the target; both see their own past."""
    target, draft = tiny_model(0), tiny_model(5)
    got: dict[str, Any] = {}

    def script(context: Context) -> Decoding:
        with context.sequence() as main, context.sequence("draft") as side:
            for name, sequence in (("target", main), ("draft", side)):
                yield from forward(sequence, [1, 2, 3], 0)
                result = yield from forward(sequence, [4], 3, outputs=LOGITS)
                got[name] = result.logits
        context.emit([1], [0.0])

    engine = Engine(target, draft=draft, cache_tokens=256)
    handle = submit(engine, [1], script)
    drain(engine)
    assert handle.result()
    for name, model in (("target", target), ("draft", draft)):
        network: Any = model.network
        from anyorder.core.batch import dense_batch

        hidden = network.hidden(dense_batch(torch.tensor([[1, 2, 3, 4]])), None)
        torch.testing.assert_close(got[name], network.logits(hidden[-1:]), atol=1e-6, rtol=0)
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize("attention", [Blocks(size=4), BIDIRECTIONAL], ids=["blocks", "two-way"])
def test_what_follows_a_cut_span_is_replayed_too(attention: Attention) -> None:
    """Half of a span is discarded and run anew, as block diffusion does."""
    first, noise, clean = ids(1, 4), ids(2, 4), ids(3, 4)
    got: list[torch.Tensor] = []

    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, [*first, *noise], 0, attention=attention)
            yield from forward(sequence, [*clean, *noise], 4, attention=attention)
            yield from forward(sequence, first, 12, attention=attention)
            result = yield from forward(sequence, [5], 16, outputs=LOGITS)
            assert result.logits is not None
            got.append(result.logits)
        context.emit([1], [0.0])

    for preempt_after in ((), (2,), (3,), (1, 2, 4)):
        engine = tiny_engine()
        handle = submit(engine, [1], script)
        drain(engine, preempt_after)
        assert handle.result().report.num_preemptions == len(preempt_after)
    if attention == Blocks(size=4):
        got.append(dense([], [*first, *clean, *noise, *first, 5], attention)[-1:])
    for logits in got[1:]:
        torch.testing.assert_close(logits, got[0], atol=1e-6, rtol=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swapped(Bidirectional):
    """Two halves of eight tokens, stored the other way round; or the first half alone, stored
    last."""

    def depths(self, num_tokens: int) -> list[int]:
        return [4, 5, 6, 7, 0, 1, 2, 3] if num_tokens == 8 else [-4, -3, -2, -1]


@pytest.mark.parametrize("changes", [{}, {"alibi": True}, {"window": 3}], ids=str)
def test_stored_in_another_order(changes: dict[str, Any]) -> None:
    """Positions, not places in the cache, say what is near: the half that runs again reads what it
    read in the pass with all."""
    layer = tiny_config().layers[0]
    if "window" in changes:
        layer = dataclasses.replace(layer, window=3, window_ahead=True)
    config = tiny_config(layers=(layer, layer), alibi=changes.get("alibi", False))
    network = Transformer.random(config, seed=0, dtype=torch.float64)
    model = dataclasses.replace(tiny_model(), network=network)
    tokens, got = ids(4, 8), {}

    def script(context: Context) -> Decoding:
        with context.sequence() as sequence:
            yield from forward(sequence, context.prompt, 0)
            for name, some, start in (("all", tokens, 5), ("again", tokens[4:], 9)):
                result = yield from forward(
                    sequence,
                    some,
                    start,
                    attention=Swapped(),
                    rows=range(len(some) - 4, len(some)),
                    outputs=LOGITS,
                )
                got[name] = result.logits
            plain = [*tokens[4:], *tokens[:4]]
            result = yield from forward(
                sequence, plain, 5, attention=BIDIRECTIONAL, rows=range(4), outputs=LOGITS
            )
            got["plain"] = result.logits
        context.emit([1], [0.0])

    engine = tiny_engine(model=model)
    handle = submit(engine, ids(1, 5), script)
    drain(engine)
    handle.result()
    torch.testing.assert_close(got["all"], got["plain"], atol=1e-6, rtol=0)
    torch.testing.assert_close(got["again"], got["all"], atol=1e-6, rtol=0)
