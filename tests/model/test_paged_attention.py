"""Attention over a table of pages: by torch and by the kernels, against the definition."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.model.paged import PAGE, Cached
from tests.tiny import tiny_config

from anyorder.cache.int8_pool import Int8Pool
from anyorder.cache.pool import Pool
from anyorder.core.attention import (
    CAUSAL,
    Attention,
    Bidirectional,
    Blocks,
    Canvas,
    Groups,
    Tree,
)
from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.model.backends import native, sdpa
from anyorder.model.backends.native import attention as kernels
from anyorder.model.backends.sdpa import Pattern
from anyorder.model.config import LayerConfig, Rope
from anyorder.model.transformer import Transformer

built = pytest.mark.skipif(
    native.library() is None and shutil.which("c++") is None,
    reason="without a C++ compiler there are no kernels; the package runs on torch alone",
)
HEADS, KV_HEADS, WIDTH, NUM_PAGES = 6, 2, 32, 20
ATTENTIONS: dict[str, Attention] = {
    "causal": CAUSAL,
    "both ways": Bidirectional(),
    "blocks": Blocks(size=2),
    "groups": Groups(ids=(0, 0, 1, 1, 0)),
    "tree": Tree(parents=(-1, 0, 0, 1, 2)),
}
PASTS = (22, 7)
"""Keys that two requests have in pages before their five new ones."""


@pytest.fixture(params=range(1, len(native.LEVELS)), ids=native.LEVELS[1:])
def level(request: Any) -> Iterator[int]:
    """Each instruction set in turn; a set that the machine lacks is covered by the best it has."""
    library = native.library()
    assert library is not None
    yield library.anyorder_set_level(request.param)
    library.anyorder_set_level(len(native.LEVELS) - 1)


def make(
    attention: Attention, *, kind: type[Pool] = Pool, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, AttentionGroup, PackedBatch, Pool]:
    """Queries, their group, its batch (in which rows of others come first), and a full pool."""
    generator = torch.Generator().manual_seed(0)
    place = {"page_size": PAGE, "device": torch.device("cpu"), "dtype": dtype}
    pool = kind([(KV_HEADS, WIDTH)], num_pages=NUM_PAGES, **place)
    stored = torch.randn(NUM_PAGES * PAGE, 2 * KV_HEADS, WIDTH, generator=generator).to(dtype)
    pool.write(0, torch.arange(NUM_PAGES * PAGE), *stored.split(KV_HEADS, dim=1))
    scattered = torch.randperm(NUM_PAGES, generator=generator)
    table = torch.full((4, 9), pool.blank)
    table[2, :7], table[0, :3] = scattered[:7], scattered[7:10]
    num = 5
    depths = torch.tensor(list(attention.depths(num)))
    positions_RQ = torch.tensor(PASTS)[:, None] + depths
    is_causal = attention is CAUSAL
    group = AttentionGroup(
        first_row=3,
        num_requests=2,
        num_queries=num,
        pages_RP=table[:, :7],
        page_rows_R=torch.tensor([2, 0]),
        query_positions_RQ=positions_RQ,
        key_positions_RK=None,
        visible_RQK=None if is_causal else attention.visible(num)[None],
        past_R=None if is_causal else torch.tensor(PASTS),
    )
    batch = PackedBatch(
        tokens_N=torch.zeros(13, dtype=torch.int64),
        positions_N=torch.cat((torch.zeros(3, dtype=torch.int64), positions_RQ.flatten())),
        slots_N=torch.zeros(13, dtype=torch.int64),
        groups=(group,),
    )
    heads = torch.randn(2 * num, HEADS + KV_HEADS, WIDTH, generator=generator).to(dtype)
    return heads[:, :HEADS], group, batch, pool


def defined(
    queries: torch.Tensor,
    group: AttentionGroup,
    pool: Pool,
    attention: Attention,
    pattern: Pattern,
    moved: dict[int, int],
) -> torch.Tensor:
    """By the definition, in float64; `moved` are positions of the past that are not in order."""
    num = group.num_queries
    visible, depths = attention.visible(num), attention.depths(num)
    keys, values = (x.double() for x in pool.read(0, group.own_pages_RP))
    out = torch.zeros(len(queries), HEADS, WIDTH, dtype=torch.float64)
    for row in range(len(queries)):
        request, query = divmod(row, num)
        past = PASTS[request]
        at = past + depths[query]
        places = {k: moved.get(k, k) for k in range(past)}
        places |= {past + k: past + depths[k] for k in range(num) if visible[query, k]}
        seen = [k for k, where in places.items() if at - where < (pattern.window or 10**9)]
        for head in range(HEADS):
            own = keys[request, seen, head // (HEADS // KV_HEADS)]
            shares = (own @ queries[row, head].double() * pattern.scale).softmax(0)
            out[row, head] = shares @ values[request, seen, head // (HEADS // KV_HEADS)]
    return out.flatten(1)


@pytest.mark.parametrize("window", [None, 3, 12])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_torch_reads_pages_by_the_definition(name: str, window: int | None) -> None:
    attention, pattern = ATTENTIONS[name], Pattern(scale=0.2, window=window)
    queries, group, _, pool = make(attention)
    new = torch.zeros(10, KV_HEADS, WIDTH, dtype=torch.float64)
    out = sdpa.attend(queries, new, new, group, pool, 0, pattern)
    expected = defined(queries, group, pool, attention, pattern, {})
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)


@built
@pytest.mark.parametrize("kind", [Pool, Int8Pool])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("window", [None, 3, 12])
@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_kernels_read_pages_by_the_definition(
    level: int, name: str, window: int | None, dtype: torch.dtype, bound: float, kind: type[Pool]
) -> None:
    attention, pattern = ATTENTIONS[name], Pattern(scale=0.2, window=window)
    queries, group, batch, pool = make(attention, dtype=dtype, kind=kind)
    assert kernels.takes(queries, group, pattern)
    out = kernels.attend(queries, group, batch, pool, 0, pattern)
    expected = defined(queries, group, pool, attention, pattern, {})
    torch.testing.assert_close(out.double(), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("by", ["torch", pytest.param("kernels", marks=built)])
@torch.no_grad()
def test_a_past_that_is_stored_out_of_order(by: str) -> None:
    """Two siblings of a tree share position 5: windows tell by position, not by place."""
    attention, pattern = ATTENTIONS["tree"], Pattern(scale=0.2, window=4)
    moved = {6: 5, **{k: k - 1 for k in range(7, 22)}}
    dtype = torch.float64 if by == "torch" else torch.float32
    queries, group, batch, pool = make(attention, dtype=dtype)
    positions = torch.arange(7 * PAGE).repeat(2, 1)
    for place, position in moved.items():
        positions[:, place] = position
    for request, past in enumerate(PASTS):
        positions[request, past : past + 5] = group.query_positions_RQ[request]
    group = dataclasses.replace(group, key_positions_RK=positions)
    new = torch.zeros(10, KV_HEADS, WIDTH, dtype=dtype)
    if by == "torch":
        out = sdpa.attend(queries, new, new, group, pool, 0, pattern)
    else:
        out = kernels.attend(queries, group, batch, pool, 0, pattern)
    expected = defined(queries, group, pool, attention, pattern, moved)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_the_kernels_do_not_know_is_left_to_torch() -> None:
    queries, group, _, _ = make(CAUSAL, dtype=torch.float32)
    plain = Pattern(scale=0.2)
    assert kernels.takes(queries, group, plain) == (native.library() is not None)
    assert not kernels.takes(queries.double(), group, plain)
    assert not kernels.takes(queries[..., :24], group, plain)
    assert not kernels.takes(queries, dataclasses.replace(group, pages_RP=None), plain)
    for change in ({"slopes": (0.5,) * HEADS}, {"window": 4, "window_ahead": True}):
        assert not kernels.takes(queries, group, dataclasses.replace(plain, **change))
    _, canvas, _, _ = make(Canvas(), dtype=torch.float32)
    canvas = dataclasses.replace(canvas, window_positions_RQ=canvas.query_positions_RQ)
    assert not kernels.takes(queries, canvas, plain)
    with torch.enable_grad():
        assert not kernels.takes(queries, group, plain)


@built
def test_layers_that_run_on_torch_read_pages_by_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = LayerConfig(rope=Rope(width=32), attention_scale=32**-0.5)
    layers = (layer, dataclasses.replace(layer, window=5))
    config = tiny_config(norm="layer", width=48, head_width=32, mlp_width=96, layers=layers)
    model = Transformer.random(config, seed=0, spread=0.1, dtype=torch.float32)
    calls: list[int] = []
    known = kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda *given: (calls.append(1), known(*given))[1])

    @torch.no_grad()
    def logits() -> torch.Tensor:
        cached, generator = Cached(model, 3, 24), torch.Generator().manual_seed(0)
        found = []
        for pieces in ([(0, 5)], [(1, 1), (2, 3)], [(0, 1), (1, 1), (2, 1)], [(0, 4), (1, 4)]):
            drawn = [(s, torch.randint(1, 61, (n,), generator=generator)) for s, n in pieces]
            found += cached.run(drawn)
        return torch.cat(found)

    ours = logits()
    assert len(calls) == 2 * (1 + 2 + 1 + 1), "each layer of each group"
    monkeypatch.setattr(kernels, "MOST_ROWS", {})
    torch.testing.assert_close(ours, logits(), atol=1e-4, rtol=0)
